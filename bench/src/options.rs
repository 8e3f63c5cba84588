//! What a run is asked for.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::subject::Subject;

/// A part of the bench; all of them unless some are named.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Scenario {
    /// The mesh hop: HTTP/1.1, at saturation and at 2,000 requests per second.
    Mesh,
    /// Unary gRPC, 1 and 10 connections with 32 streams each.
    Grpc,
    /// The mesh hop carried as opaque TCP.
    Opaque,
    /// A new client connection for each request.
    Churn,
    /// Bodies of 1 MiB and 64 MiB, both ways.
    Bulk,
    /// Memory of 1, 1,000 and 10,000 idle client connections.
    Idle,
    /// The mesh hop in meshes of different sizes.
    Many,
}

/// Options of `outrigger-bench run`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Run only these, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) scenario: Vec<Scenario>,
    /// Measure only these, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) subject: Vec<Subject>,
    /// How often each subject is measured, in turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeats: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(crate) duration: u32,
    /// Once and for two seconds: shows that everything works, measures little.
    #[arg(long, conflicts_with_all = ["repeats", "duration"])]
    pub(crate) quick: bool,
    /// Directory for the results.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) results: PathBuf,
    /// Commit of the source, for the report.
    #[arg(long, default_value = "unknown")]
    pub(crate) commit: String,
    /// Cargo's profile of the `outrigger` binary, for the report.
    #[arg(long, default_value = "unknown")]
    pub(crate) profile: String,
    /// UTC date for the names of the results.
    #[arg(long, default_value = "undated")]
    pub(crate) date: String,
}

impl Options {
    /// Repeats and seconds.
    pub(crate) fn effort(&self) -> (u32, u32) {
        if self.quick { (1, 2) } else { (self.repeats, self.duration) }
    }

    /// The scenarios to run, in their order.
    pub(crate) fn scenarios(&self) -> Vec<Scenario> {
        let chosen = |one: &Scenario| self.scenario.is_empty() || self.scenario.contains(one);
        Scenario::value_variants().iter().copied().filter(chosen).collect()
    }

    /// What sets the results of a part apart from those of the whole: `-mesh-grpc`.
    pub(crate) fn part(&self) -> String {
        let scenarios = self.scenario.iter().filter_map(Scenario::to_possible_value);
        let subjects = self.subject.iter().filter_map(Subject::to_possible_value);
        let names = scenarios.chain(subjects).map(|value| format!("-{}", value.get_name()));
        let quick = self.quick.then(|| "-quick".to_owned());
        names.chain(quick).collect()
    }

    /// Those of the subjects that are to be measured.
    pub(crate) fn choose(&self, subjects: &[Subject]) -> Vec<Subject> {
        let chosen = |one: &Subject| self.subject.is_empty() || self.subject.contains(one);
        subjects.iter().copied().filter(chosen).collect()
    }
}
