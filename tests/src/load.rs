//! Open-loop load: requests leave when they are due, whatever became of those before, and every
//! failure is kept with its details.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Request;
use outrigger_common::drain::DrainTrigger;
use outrigger_common::tasks::Tasks;

use crate::app::Body;
use crate::client::{Answer, Broken, Client};
use crate::wait::{DEADLINE, until};

/// Failures shown at most.
const SHOWN: usize = 10;

/// One request that did not succeed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which request.
    pub number: u64,
    /// When it left, since the load began.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// Method and target.
    pub what: String,
    /// What came instead of a success.
    pub how: String,
    /// The same in a word or two: status and reason, `cut`, `no head`, `no answer`.
    pub kind: String,
    /// A response whose body broke off after its head.
    pub cut: bool,
}

/// One request that ended, well or not.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Which request.
    pub number: u64,
    /// When it left, since the load began.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// Whether it succeeded.
    pub succeeded: bool,
}

#[derive(Debug, Default)]
struct Tally {
    done: u64,
    succeeded: u64,
    answered_by: BTreeMap<String, u64>,
    slowest: Duration,
    samples: Vec<Sample>,
    failures: Vec<Failure>,
}

/// What became of a load.
#[derive(Debug)]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Requests that succeeded.
    pub succeeded: u64,
    /// Successes by the application that answered.
    pub answered_by: BTreeMap<String, u64>,
    /// The slowest of all.
    pub slowest: Duration,
    /// All that ended, in the order of their ends.
    pub samples: Vec<Sample>,
    /// Those that failed.
    pub failures: Vec<Failure>,
    /// The load's length.
    pub lasted: Duration,
}

impl Report {
    /// Fails the test if one request failed, and shows which and how.
    ///
    /// # Panics
    /// When one did.
    pub fn assert_clean(&self, what: &str) {
        self.judge(what, |_| true);
    }

    /// The same, but for responses cut after their head: nobody can repeat those.
    ///
    /// # Panics
    /// When another request failed.
    pub fn assert_clean_but_for_cuts(&self, what: &str) {
        self.judge(what, |failure| !failure.cut);
    }

    /// How many responses were cut after their head.
    pub fn cut(&self) -> usize {
        self.failures.iter().filter(|failure| failure.cut).count()
    }

    /// Failures by kind.
    pub fn kinds(&self) -> BTreeMap<&str, u64> {
        let mut kinds = BTreeMap::new();
        for failure in &self.failures {
            *kinds.entry(failure.kind.as_str()).or_default() += 1;
        }
        kinds
    }

    /// What left in a part of the load.
    pub fn during(&self, part: &Range<Duration>) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| part.contains(&sample.at))
    }

    /// A quantile of the time that requests of a part took, those that failed among them; 0 without
    /// any.
    pub fn quantile(&self, part: &Range<Duration>, quantile: f64) -> Duration {
        let mut times: Vec<_> = self.during(part).map(|sample| sample.took).collect();
        times.sort_unstable();
        #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
        let rank = (times.len() as f64 * quantile).ceil() as usize;
        times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    fn judge(&self, what: &str, counts: impl Fn(&Failure) -> bool) {
        println!(
            "{what}: {} requests in {:.1?}, {} succeeded, slowest {:.1?}, by {:?}",
            self.sent, self.lasted, self.succeeded, self.slowest, self.answered_by
        );
        let failures: Vec<_> = self.failures.iter().filter(|failure| counts(failure)).collect();
        let shown: Vec<_> = failures.iter().take(SHOWN).map(|failure| format!("  {failure:?}")).collect();
        assert!(
            failures.is_empty(),
            "{what}: {} of {} requests failed, such as\n{}",
            failures.len(),
            self.sent,
            shown.join("\n")
        );
        let ended = self.succeeded + u64::try_from(self.failures.len()).unwrap_or(u64::MAX);
        assert_eq!(ended, self.sent, "every request ends");
    }
}

/// A load under way.
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    sent: Arc<Mutex<u64>>,
    begun: Instant,
    stop: DrainTrigger,
    tasks: Tasks,
}

impl Load {
    /// Sends `make(n)` at `rate` requests a second through `client` until stopped. Answers below 400
    /// are successes.
    pub fn start(client: &Client, rate: f64, make: impl Fn(u64) -> Request<Body> + Send + 'static) -> Self {
        let load = Self {
            tally: Arc::default(),
            sent: Arc::default(),
            begun: Instant::now(),
            stop: DrainTrigger::new(),
            tasks: Tasks::current(),
        };
        let (tally, sent, begun) = (load.tally.clone(), load.sent.clone(), load.begun);
        let (stop, tasks, client) = (load.stop.listen(), load.tasks.clone(), client.clone());
        load.tasks.spawn("load", async move {
            for number in 0u64.. {
                #[allow(clippy::cast_precision_loss)] // A test does not send 2^52 requests.
                let due = begun + Duration::from_secs_f64(number as f64 / rate);
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = stop.signalled() => return,
                }
                let (request, client, tally) = (make(number), client.clone(), tally.clone());
                *sent.lock().expect("no holder panics") += 1;
                tasks.spawn("request", one(number, begun, client, request, tally));
            }
        });
        load
    }

    /// When it began.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Requests that have ended so far.
    pub fn done(&self) -> u64 {
        self.tally.lock().expect("no holder panics").done
    }

    /// Waits until that many more requests have ended: the pace of a test under load.
    pub async fn more(&self, requests: u64) {
        let goal = self.done() + requests;
        until(&format!("{requests} more requests end"), || async { self.done() >= goal }).await;
    }

    /// Waits until an application has answered that many requests in all.
    pub async fn answered_by(&self, app: &str, requests: u64) {
        let count =
            || self.tally.lock().expect("no holder panics").answered_by.get(app).copied().unwrap_or(0);
        until(&format!("{app} answers {requests} requests"), || async { count() >= requests }).await;
    }

    /// Sends no more, waits for those under way, and reports.
    ///
    /// # Panics
    /// When one of them does not end.
    pub async fn stop(self) -> Report {
        let lasted = self.begun.elapsed();
        self.stop.start();
        let left = self.tasks.join(DEADLINE * 2).await;
        assert_eq!(left, 0, "requests never ended");
        let tally = std::mem::take(&mut *self.tally.lock().expect("no holder panics"));
        Report {
            sent: *self.sent.lock().expect("no holder panics"),
            succeeded: tally.succeeded,
            answered_by: tally.answered_by,
            slowest: tally.slowest,
            samples: tally.samples,
            failures: tally.failures,
            lasted,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.start();
    }
}

async fn one(number: u64, begun: Instant, client: Client, request: Request<Body>, tally: Arc<Mutex<Tally>>) {
    let what = format!("{} {}", request.method(), request.uri());
    let left = Instant::now();
    let result = judge(client.send(request).await);
    let took = left.elapsed();
    let mut tally = tally.lock().expect("no holder panics");
    tally.done += 1;
    tally.slowest = tally.slowest.max(took);
    let at = left - begun;
    tally.samples.push(Sample { number, at, took, succeeded: result.is_ok() });
    match result {
        Ok(answer) => {
            tally.succeeded += 1;
            *tally.answered_by.entry(answer.header("x-app").to_owned()).or_default() += 1;
        }
        Err(Bad { how, kind }) => {
            let cut = kind == CUT;
            tally.failures.push(Failure { number, at, took, what, how, kind, cut });
        }
    }
}

/// Kind of a response that broke off after its head.
const CUT: &str = "cut";

struct Bad {
    how: String,
    kind: String,
}

fn judge(result: Result<Answer, Broken>) -> Result<Answer, Bad> {
    let answer = match result {
        Ok(answer) => answer,
        Err(broken) => {
            let kind = match &broken {
                Broken::Head(_) => "no head",
                Broken::Body { .. } => CUT,
                Broken::Timeout => "no answer",
            };
            return Err(Bad { how: format!("{broken:?}"), kind: kind.to_owned() });
        }
    };
    if answer.status.as_u16() >= 400 {
        let (status, reason) = (answer.status.as_u16(), answer.reason());
        let kind = if reason.is_empty() { format!("{status}") } else { format!("{status} {reason}") };
        return Err(Bad { how: format!("{} {reason:?} {:?}", answer.status, answer.text()), kind });
    }
    // Applications that are cut short say how much there was to come.
    let length = answer.header("x-app-length");
    if !length.is_empty() && length != answer.body.len().to_string() {
        let how = format!("complete with {} of {length} bytes", answer.body.len());
        return Err(Bad { how, kind: "short".to_owned() });
    }
    Ok(answer)
}
