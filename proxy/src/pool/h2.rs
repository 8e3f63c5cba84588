//! A set of HTTP/2 connections to one place: streams counted, idle, old and silent connections not
//! picked.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::connector::{Limits, Reuse};
use super::pulse::Pulse;
use super::sending::Sender;
use crate::error::ProxyError;
use crate::policy::limit::BoundPermit;

/// Streams before another connection is opened, well below the 250 another sidecar admits: a request
/// that fills the connection's window delays those beside it (linkerd2#2018, ztunnel#931).
const STREAMS: usize = 100;
/// Connections to one place before they are filled up to what the peer admits.
const CONNECTIONS: usize = 8;
/// A peer that has not been heard for this long since it was asked something does not answer: it
/// was sent a PING after 2 s at the latest ([`super::drive::PING_AFTER`]).
const SILENCE: Duration = Duration::from_secs(3);

/// How often a new connection is asked for the peer's settings.
const SETTINGS_LOOK: Duration = Duration::from_millis(1);

/// Idle connections are looked at no less often than this.
const IDLE_LOOK: Duration = Duration::from_secs(30);

/// One HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
    pulse: Arc<Pulse>,
    state: Mutex<State>,
    /// Where it is kept, to be let go of when it closes.
    home: OnceLock<Weak<Mutex<Vec<Arc<Self>>>>>,
}

#[derive(Debug)]
struct State {
    /// Takes no new requests: too old, idle, silent, broken, or has had as many as it may.
    closed: bool,
    streams: usize,
    /// Streams ever opened.
    opened: u32,
    /// When a stream was last opened or ended.
    last_used: Instant,
    /// Time without streams after which it closes.
    idle: Duration,
    /// The first request since the peer was last heard.
    asked: Option<Instant>,
    /// An attempt was given up for want of an answer.
    suspected: Option<Instant>,
    /// The peer is sent PINGs, so that silence means something.
    pings: bool,
    /// Has carried a request: a request it gives back unsent met a connection that had grown stale.
    used: bool,
    /// Its place among the connections of the destination.
    permit: Option<BoundPermit>,
}

/// Whether a connection takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Gladly.
    Free,
    /// Rather another one, if one more may be opened.
    Tight,
    /// The peer admits no more streams.
    Full,
    /// Not this request: it has been idle, and the request may not be repeated.
    Stale,
    /// The peer has stopped answering.
    Silent,
    /// No request at all.
    Closed,
}

/// Why a connection takes no new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It broke, or the peer said so.
    Ended,
    /// It has been idle.
    Idle,
    /// It is to be replaced for its age.
    Old,
}

impl State {
    fn new(pings: bool, now: Instant) -> Self {
        Self {
            pings,
            closed: false,
            streams: 0,
            opened: 0,
            last_used: now,
            idle: Duration::MAX,
            asked: None,
            suspected: None,
            used: false,
            permit: None,
        }
    }

    /// Whether the peer, last heard at `heard`, has stopped answering.
    fn silent(&self, heard: Instant, now: Instant) -> bool {
        let unanswered = |at: &Instant| *at >= heard;
        let overdue = |at: &Instant| now - *at >= SILENCE;
        self.suspected.as_ref().is_some_and(unanswered)
            || (self.pings && self.asked.as_ref().is_some_and(|at| unanswered(at) && overdue(at)))
    }

    /// Whether another stream may be opened. Pure: the peer was heard at `heard` and admits `admitted`
    /// streams.
    fn room(&self, heard: Instant, admitted: usize, reuse: Reuse, now: Instant) -> Room {
        if self.closed {
            Room::Closed
        } else if self.silent(heard, now) {
            Room::Silent
        } else if self.streams == 0 && !reuse.accepts(now - self.last_used) {
            Room::Stale
        } else if self.streams >= admitted {
            Room::Full
        } else if self.streams < STREAMS {
            Room::Free
        } else {
            Room::Tight
        }
    }

    fn opens(&mut self, heard: Instant, limits: &Limits, now: Instant) {
        self.streams += 1;
        self.opened = self.opened.saturating_add(1);
        self.last_used = now;
        self.idle = limits.idle;
        if self.asked.is_none_or(|at| at < heard) {
            self.asked = Some(now);
        }
        if limits.max_requests_per_connection.is_some_and(|most| self.opened >= most) {
            self.closed = true;
        }
    }

    fn close(&mut self, why: Closing) {
        self.closed = true;
        // What is replaced for its age must not keep its successor from being opened.
        if self.streams == 0 || why == Closing::Old {
            self.permit = None;
        }
    }

    /// Whether it has been idle for too long, or else how long it may stay unwatched. A policy may
    /// shorten the idle time meanwhile.
    fn idle(&self, now: Instant) -> Result<(), Duration> {
        let unused = if self.streams == 0 { now - self.last_used } else { Duration::ZERO };
        match self.idle.checked_sub(unused) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(left) => Err(left.min(IDLE_LOOK)),
        }
    }
}

impl Connection {
    /// A connection whose `pulse` is kept by its byte stream; `pings`: a peer that stays silent is sent
    /// PINGs.
    pub(super) fn new(sender: Sender, pulse: Arc<Pulse>, pings: bool) -> Self {
        let state = Mutex::new(State::new(pings, Instant::now()));
        Self { sender, pulse, state, home: OnceLock::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn room(&self, reuse: Reuse, now: Instant) -> Room {
        if self.sender.is_closed() {
            return Room::Closed;
        }
        match self.state().room(self.pulse.heard(), self.pulse.streams(), reuse, now) {
            // What waits may have taken the room of everybody, for as long as nobody reads it.
            Room::Free if self.pulse.is_full() => Room::Tight,
            room => room,
        }
    }

    /// A handle to send one request with.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Whether the peer takes extended CONNECT; waits for its settings, `limit` at most.
    ///
    /// Cancel safety: safe.
    pub async fn takes_extended_connect(&self, limit: Duration) -> bool {
        self.settled(limit).await && self.sender.extended_connect()
    }

    /// Waits for the peer's settings, `limit` at most; whether they are here.
    ///
    /// Cancel safety: safe.
    pub async fn settled(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while !self.sender.is_closed() && Instant::now() < until {
            if self.pulse.settled() {
                return true;
            }
            // Once a connection, for a round trip on this machine: not worth a wake-up of its own.
            tokio::time::sleep(SETTINGS_LOOK).await;
        }
        false
    }

    /// Whether the peer refused our certificate: its verdict comes after the handshake.
    pub fn certificate_refused(&self) -> bool {
        self.pulse.certificate_refused()
    }

    /// Whether a request is under way.
    pub(super) fn is_waiting(&self) -> bool {
        self.state().streams > 0
    }

    /// Whether it had carried a request before; says so from now on.
    pub fn mark_used(&self) -> bool {
        std::mem::replace(&mut self.state().used, true)
    }

    /// No new requests: it broke. It ends with its last stream.
    pub fn close(&self) {
        self.close_for(Closing::Ended);
    }

    pub(super) fn close_for(&self, why: Closing) {
        self.state().close(why);
        if let Some(home) = self.home.get().and_then(Weak::upgrade) {
            lock(&home).retain(|kept| !std::ptr::eq(kept.as_ref(), self));
        }
    }

    /// Closes the connection if it has been idle for too long, else says when to look again.
    pub(super) fn close_if_idle(&self, now: Instant) -> Option<Instant> {
        let idle = self.state().idle(now);
        match idle {
            Ok(()) => {
                self.close_for(Closing::Idle);
                None
            }
            Err(left) => Some(now + left),
        }
    }

    /// It has ended, and its place is free.
    pub(super) fn ended(&self) {
        self.close_for(Closing::Ended);
        self.state().permit = None;
    }
}

/// Counts a stream until dropped.
#[derive(Debug)]
pub struct StreamGuard {
    connection: Arc<Connection>,
    opened: Instant,
}

impl StreamGuard {
    fn open(connection: Arc<Connection>, limits: &Limits, now: Instant) -> Self {
        let heard = connection.pulse.heard();
        connection.state().opens(heard, limits, now);
        Self { connection, opened: now }
    }

    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// An attempt on this stream was given up for want of an answer. If the peer has not been heard
    /// since the stream was opened, nobody is sent this way until it is heard again: a slow application
    /// is not a dead peer, and a peer that answers others, or a PING, lives. To be called before the
    /// guard is dropped.
    pub fn suspect(&self) {
        if self.connection.pulse.heard() <= self.opened {
            self.connection.state().suspected = Some(Instant::now());
        }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        let heard = self.connection.pulse.heard();
        let mut state = self.connection.state();
        state.last_used = now;
        state.streams -= 1;
        if state.streams > 0 {
            return;
        }
        if state.closed {
            state.permit = None;
        }
        // Without streams no PING would tell whether it lives; a new connection does.
        let lost = state.silent(heard, now);
        drop(state);
        if lost {
            self.connection.close();
        }
    }
}

/// Connections to one place. Gone with its owner: connections then end with their last stream.
#[derive(Debug)]
pub struct Set {
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
    /// One at a time connects; others wait and share.
    connecting: tokio::sync::Mutex<()>,
}

impl Default for Set {
    fn default() -> Self {
        Self { connections: Arc::default(), connecting: tokio::sync::Mutex::new(()) }
    }
}

fn lock(connections: &Mutex<Vec<Arc<Connection>>>) -> MutexGuard<'_, Vec<Arc<Connection>>> {
    connections.lock().expect("no holder of this lock panics")
}

/// How much a request wants to avoid a connection with many streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Up to [`STREAMS`], while there are few connections.
    Some,
    /// Up to what the peer admits: no other may be opened.
    All,
}

impl Set {
    /// The least used connection with room, if there is one.
    fn with_room(&self, limits: &Limits, reuse: Reuse, fill: Fill) -> Option<StreamGuard> {
        let now = Instant::now();
        let mut connections = lock(&self.connections);
        let spill = fill == Fill::All || connections.len() >= CONNECTIONS;
        let mut least: Option<((bool, usize), &Arc<Connection>)> = None;
        let mut ended = false;
        for connection in connections.iter() {
            let room = connection.room(reuse, now);
            let streams = connection.state().streams;
            if room == Room::Silent && streams == 0 {
                // Nothing is lost with it, and its place is wanted.
                connection.state().close(Closing::Idle);
                ended = true;
            }
            ended |= room == Room::Closed;
            let takes = room == Room::Free || (spill && room == Room::Tight);
            let burden = (connection.pulse.is_full(), streams);
            if takes && least.is_none_or(|(lightest, _)| burden < lightest) {
                least = Some((burden, connection));
            }
        }
        let stream = least.map(|(_, connection)| StreamGuard::open(connection.clone(), limits, now));
        let full = stream.as_ref().is_some_and(|stream| stream.connection.state().closed);
        if ended || full {
            connections.retain(|connection| connection.room(reuse, now) != Room::Closed);
        }
        stream
    }

    /// Closes what has been idle for longer than `reuse` allows: the connection opened instead
    /// replaces it, or a rare request would add one to the set each time.
    fn close_stale(&self, reuse: Reuse) {
        let now = Instant::now();
        lock(&self.connections).retain(|connection| {
            let stale = connection.room(reuse, now) == Room::Stale;
            if stale {
                connection.state().close(Closing::Idle);
            }
            !stale
        });
    }

    /// Number of connections, for people.
    pub fn count(&self) -> usize {
        lock(&self.connections).len()
    }

    /// Whether a request could be sent at once on a connection there is.
    pub fn has_room(&self, reuse: Reuse) -> bool {
        let now = Instant::now();
        lock(&self.connections)
            .iter()
            .any(|connection| matches!(connection.room(reuse, now), Room::Free | Room::Tight))
    }

    /// A stream on a connection with room, if there is one.
    pub fn at_hand(&self, limits: &Limits, reuse: Reuse) -> Option<StreamGuard> {
        self.with_room(limits, reuse, Fill::Some)
    }

    /// A stream on a connection with room, else on a new one made by `connect`.
    ///
    /// Where no connection has fewer than 100 streams one more is opened, up to 8; beyond that, and
    /// where the destination may have no more, they are filled up to what the peer admits
    /// (`SETTINGS_MAX_CONCURRENT_STREAMS`, RFC 9113 section 5.1.2), and only then is there one more. A
    /// request never queues behind the streams of a connection.
    ///
    /// Cancel safety: safe; a connection being made is dropped, or found by the next caller.
    ///
    /// # Errors
    /// What `connect` said; [`ProxyError::PendingLimit`] and [`ProxyError::ConnectionLimit`], at once.
    /// Nothing was sent.
    pub async fn acquire<F>(
        &self,
        limits: &Limits,
        reuse: Reuse,
        connect: F,
    ) -> Result<StreamGuard, ProxyError>
    where
        F: AsyncFnOnce() -> Result<Arc<Connection>, ProxyError>,
    {
        if let Some(stream) = self.with_room(limits, reuse, Fill::Some) {
            return Ok(stream);
        }
        // Who makes the connection does not wait for one: with no place to wait there still is a first.
        let _single_flight = match self.connecting.try_lock() {
            Ok(first) => first,
            Err(_) => {
                let Some(_waiting) = limits.pending.try_acquire() else {
                    return Err(ProxyError::PendingLimit { limit: limits.pending.limit() });
                };
                self.connecting.lock().await
            }
        };
        if let Some(stream) = self.with_room(limits, reuse, Fill::Some) {
            return Ok(stream);
        }
        let permit = match limits.connections.try_acquire() {
            Some(permit) => permit,
            None => {
                if let Some(stream) = self.with_room(limits, reuse, Fill::All) {
                    return Ok(stream);
                }
                self.close_stale(reuse);
                limits
                    .connections
                    .try_acquire()
                    .ok_or_else(|| ProxyError::ConnectionLimit { limit: limits.connections.limit() })?
            }
        };
        let connection = connect().await?;
        connection.state().permit = Some(permit);
        // Set once: a connection is made for one set.
        let _first = connection.home.set(Arc::downgrade(&self.connections));
        self.close_stale(reuse);
        lock(&self.connections).push(connection.clone());
        let stream = StreamGuard::open(connection, limits, Instant::now());
        if stream.connection.state().closed {
            stream.connection.close();
        }
        Ok(stream)
    }
}
