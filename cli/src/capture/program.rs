//! Running nft and iptables, and what their failures mean for whoever has to mend them.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::Failure;

/// Why a program did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It is not installed.
    Missing(String),
    /// Whoever runs it may not.
    Forbidden(String),
    /// The kernel lacks something, or anything else.
    Failed {
        program: String,
        /// What it said.
        said: String,
    },
}

/// Runs it with `input` and returns what it printed. Its words are never translated.
///
/// # Errors
/// When it cannot be started, or fails.
pub(super) fn run(program: &str, args: &[&str], input: &str) -> Result<String, Trouble> {
    let failed = |said: String| Trouble::Failed { program: program.to_owned(), said };
    let mut command = Command::new(program);
    // An init container's PATH is often too short.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")).env("LC_ALL", "C");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Trouble::Missing(program.to_owned()),
        _ => failed(error.to_string()),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read to the end says why when it ends. Scripts are smaller than a pipe, or it
        // reads them before it prints.
        let _ended = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let forbidden = ["Operation not permitted", "Permission denied", "you must be root"];
    if forbidden.iter().any(|words| said.contains(words)) {
        return Err(Trouble::Forbidden(program.to_owned()));
    }
    Err(failed(if said.is_empty() { format!("it ended with {}", output.status) } else { said }))
}

/// Whether this network namespace carries IPv6 at all: the kernel has it, and it is not turned off.
pub(super) fn has_ipv6() -> bool {
    let off = std::fs::read_to_string(Path::new("/proc/sys/net/ipv6/conf/all/disable_ipv6"));
    off.is_ok_and(|off| off.trim() != "1")
}

impl Trouble {
    /// The remedy in words.
    pub(super) fn remedy(&self) -> String {
        match self {
            Self::Missing(program) if program == "nft" => {
                "nft is not installed: install the package nftables, or use --backend iptables".to_owned()
            }
            Self::Missing(program) => format!(
                "{program} is not installed: install the package iptables, or nftables and use --backend nft"
            ),
            Self::Forbidden(program) => format!(
                "{program} may not change the rules of this network namespace: run as root with CAP_NET_ADMIN; an init container needs runAsUser: 0 and capabilities.add: [NET_ADMIN] in its securityContext"
            ),
            Self::Failed { program, said } => match kernel_lacks(program, said) {
                Some(remedy) => format!("{program} failed: {said}\n{remedy}"),
                None => format!("{program} failed: {said}"),
            },
        }
    }

    pub(super) fn failure(&self) -> Failure {
        Failure::job(self.remedy())
    }
}

/// What to do about a kernel without what a program asks for; it cannot load modules from within a
/// container.
fn kernel_lacks(program: &str, said: &str) -> Option<&'static str> {
    let lacks = [
        "does not exist",
        "can't initialize",
        "not supported",
        "No such file",
        "Could not fetch",
        "No chain/target/match",
        "Couldn't load",
        "RULE_APPEND failed",
        "missing kernel module",
    ];
    if !lacks.iter().any(|words| said.contains(words)) {
        return None;
    }
    Some(match program.split('-').next() {
        Some("ip6tables") => {
            "the kernel has IPv6 but no nat table for it, so that IPv6 would go past the mesh: load the module on the machine (modprobe -a ip6table_nat xt_REDIRECT xt_owner xt_addrtype), or use --backend nft, or turn IPv6 off in this namespace (sysctl net.ipv6.conf.all.disable_ipv6=1)"
        }
        Some("iptables") => {
            "the kernel lacks a module: load it on the machine (modprobe -a iptable_nat xt_REDIRECT xt_owner xt_addrtype), or use --backend nft"
        }
        _ => {
            "the kernel lacks nat in inet tables (Linux 5.2) or a module: load it on the machine (modprobe -a nf_tables nft_chain_nat nft_redir nft_fib_inet), or use --backend iptables"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_name_their_remedy() {
        assert_eq!(
            run("no-such-program-of-ours", &[], ""),
            Err(Trouble::Missing("no-such-program-of-ours".into()))
        );
        let said = |program: &str, said: &str| Trouble::Failed { program: program.into(), said: said.into() };
        for (trouble, told) in [
            (Trouble::Missing("nft".into()), "install the package nftables"),
            (Trouble::Missing("iptables-save".into()), "install the package iptables"),
            (Trouble::Forbidden("nft".into()), "NET_ADMIN"),
            (
                said(
                    "ip6tables-restore",
                    "ip6tables-restore v1.8.9 (legacy): can't initialize ip6tables table `nat'",
                ),
                "modprobe -a ip6table_nat",
            ),
            (said("nft", "Error: Could not process rule: No such file or directory"), "--backend iptables"),
            (said("nft", "Error: syntax error"), "nft failed: Error: syntax error"),
        ] {
            assert!(trouble.remedy().contains(told), "{}", trouble.remedy());
        }
        assert_eq!(said("nft", "Error: syntax error").remedy().lines().count(), 1);
    }

    #[test]
    fn programs_get_their_input_and_say_why_they_fail() {
        assert_eq!(run("cat", &[], "a script"), Ok("a script".into()));
        let failed = run("sh", &["-c", "echo broken >&2; exit 3"], "");
        assert_eq!(failed, Err(Trouble::Failed { program: "sh".into(), said: "broken".into() }));
        let forbidden = run("sh", &["-c", "echo 'x: Operation not permitted' >&2; exit 1"], "");
        assert_eq!(forbidden, Err(Trouble::Forbidden("sh".into())));
    }
}
