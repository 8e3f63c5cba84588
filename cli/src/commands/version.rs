//! `outrigger version`.

use outrigger_api::PROTOCOL_VERSION;
use outrigger_common::build_info::{VERSION, platform};
use serde_json::json;

use crate::args::{Output, VersionArgs};
use crate::failure::Failure;
use crate::output;

pub(super) fn run(args: &VersionArgs) -> Result<(), Failure> {
    match args.output {
        Output::Text => {
            output::print_line(&format!(
                "outrigger {VERSION} {} (watch protocol {PROTOCOL_VERSION})",
                platform()
            ))?;
        }
        Output::Json => output::print_json(&json!({
            "version": VERSION,
            "platform": platform(),
            "watch_protocol": PROTOCOL_VERSION,
        }))?,
    }
    Ok(())
}
