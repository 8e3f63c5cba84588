//! `outrigger capture` as it is typed.

use std::path::Path;

use clap::{Args, Subcommand, ValueEnum};

use super::rules::{Plan, Range};
use crate::args::Output;

/// Sets up and takes down the redirect that brings an application's connections to the sidecar, in
/// the network namespace the command runs in.
///
/// TCP alone is captured, IPv4 and IPv6. The loopback interface, DNS (port 53), SSH to this machine
/// (port 22) and connections that exist already never are. It needs the program nft or iptables, and the
/// right to change the rules: root, or CAP_NET_ADMIN with nft.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct CaptureArgs {
    #[command(subcommand)]
    pub(crate) command: CaptureCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaptureCommand {
    /// Put the redirect in force, or change it in one step; to do it again changes nothing
    Install(InstallArgs),
    /// Take the redirect away and nothing else; where there is none, that is fine
    ///
    /// Connections captured before may break: take it away when the application rests.
    Remove(RemoveArgs),
    /// Say what is in force; exit code 0 only if it is whole, 1 if there is nothing or a part
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    pub(crate) wish: Wish,
    /// Change nothing, and print what would be given to nft -f, or to iptables-restore --noflush
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) how: How,
}

/// What is to be captured.
#[derive(Debug, Args)]
pub(crate) struct Wish {
    /// User the sidecar runs as, by number or name: what it sends is not captured. It must run nothing
    /// else
    #[arg(long, value_name = "UID|NAME", value_parser = user)]
    pub(crate) uid: u32,
    /// Port of the sidecar's outbound.listen
    #[arg(long, default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) outbound_port: u16,
    /// Port of the sidecar's inbound.listen
    #[arg(long, default_value_t = 15006, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) inbound_port: u16,
    /// Port of the sidecar's mesh.listen, which is reached as it is
    #[arg(long, default_value_t = 15008, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) mesh_port: u16,
    /// Port of the sidecar's admin.listen, which is reached as it is
    #[arg(long, default_value_t = 15020, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) admin_port: u16,
    /// Ports the application connects to without the sidecar, separated by commas
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) exclude_outbound_ports: Vec<u16>,
    /// Ports of this machine that are reached without the sidecar, separated by commas
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) exclude_inbound_ports: Vec<u16>,
    /// Addresses the application connects to without the sidecar, as 10.0.0.0/8 or fd00::/8, separated by
    /// commas
    #[arg(long, value_name = "RANGES", value_delimiter = ',')]
    pub(crate) exclude_ranges: Vec<Range>,
}

impl Wish {
    pub(crate) fn plan(&self) -> Plan {
        let plan = Plan {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            mesh_port: self.mesh_port,
            admin_port: self.admin_port,
            uid: self.uid,
            exclude_outbound_ports: self.exclude_outbound_ports.clone(),
            exclude_inbound_ports: self.exclude_inbound_ports.clone(),
            exclude_ranges: self.exclude_ranges.clone(),
        };
        plan.normal()
    }
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Change nothing, and print what would be given to nft -f, or to iptables-restore --noflush
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) how: How,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) how: How,
}

#[derive(Debug, Args)]
pub(crate) struct How {
    /// Program that changes the rules; without it nft if it works, else iptables. What the other one has
    /// of ours goes
    #[arg(long, value_enum)]
    pub(crate) backend: Option<Backend>,
    /// What to print
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// The program that has the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// nftables
    Nft,
    /// iptables and ip6tables, whichever form of them is installed
    Iptables,
}

impl Backend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        }
    }
}

fn user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let users = std::fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default();
    uid_of(&users, text).ok_or_else(|| format!("there is no user {text:?} in /etc/passwd; give its number"))
}

/// passwd(5): name, password, user id.
fn uid_of(users: &str, name: &str) -> Option<u32> {
    users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split(':').nth(1)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_their_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/bash\noutrigger-old:x:7:7::/:\noutrigger:x:1337:1337::/:\n";
        assert_eq!(uid_of(users, "outrigger"), Some(1337));
        assert_eq!(uid_of(users, "root"), Some(0));
        assert_eq!(uid_of(users, "out"), None);
        assert_eq!(user("1337"), Ok(1337));
        assert!(user("nobody-of-that-name").unwrap_err().contains("/etc/passwd"));
    }
}
