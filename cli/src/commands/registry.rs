//! `outrigger registry backup` and `restore`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use outrigger_common::telemetry::chain;
use outrigger_registry::backup::{Head, decode, encode};
use outrigger_registry::store::redb::{self, OpenError};

use crate::admin::Admin;
use crate::args::{BackupArgs, RestoreArgs};
use crate::failure::Failure;
use crate::output;

const SECRET: &str = "It holds the mesh's root with its PRIVATE KEY: whoever reads it can be any workload of the mesh. \
                      Keep it encrypted and away from this machine.";

/// Whether the backup could be written, before the registry is asked.
pub(super) fn check(args: &BackupArgs) -> Result<(), Failure> {
    if is_stream(&args.out) {
        return if output::on_terminal() {
            Err(Failure::usage(
                "a backup holds a private key and is not shown on a terminal: name a file with --out, or send \
                 standard output to a program that encrypts it",
            ))
        } else {
            Ok(())
        };
    }
    match std::fs::symlink_metadata(&args.out) {
        Ok(_) => Err(exists(&args.out)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::usage(format!("--out {}: {error}", args.out.display()))),
    }
}

pub(super) async fn backup(args: &BackupArgs) -> Result<(), Failure> {
    let (bytes, from) = match &args.data_dir {
        Some(directory) => (offline(directory)?, directory.display().to_string()),
        None => {
            let admin = Admin::new(&args.connection.registry, &args.connection.identity)?;
            (admin.backup().await?, format!("the registry at {}", args.connection.registry))
        }
    };
    // What cannot be restored is no backup: find out now rather than on the day it is needed.
    let (head, _) = decode(&bytes).map_err(|error| {
        Failure::job(format!("what came from {from} is not a whole backup: {error}; nothing was written"))
    })?;
    if is_stream(&args.out) {
        let mut out = io::stdout().lock();
        out.write_all(&bytes)?;
        out.flush()?;
        output::say(&format!("backed up {from}: {}. {SECRET}", contents(&head)));
    } else {
        write(&args.out, &bytes)?;
        let place = args.out.display();
        output::say(&format!("backed up {from} to {place} (mode 0600): {}. {SECRET}", contents(&head)));
    }
    Ok(())
}

pub(super) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let (place, directory) = (args.from.display(), args.data_dir.display());
    let refused = |error: &dyn std::fmt::Display| Failure::usage(format!("cannot restore {place}: {error}"));
    let (head, snapshot) =
        decode(&read(&args.from).map_err(|error| refused(&error))?).map_err(|error| refused(&error))?;
    redb::restore(&args.data_dir, &snapshot).map_err(|error| match &error {
        redb::RestoreError::NotEmpty { .. } => Failure::usage(chain(&error)),
        redb::RestoreError::Open(_) => Failure::job(format!("cannot restore {place}: {}", chain(&error))),
    })?;
    output::say(&format!(
        "restored {place} to {directory}: {}. Start the registry with data_dir: {directory}; sidecars connect again \
         by themselves. What was changed after the backup is lost: apply resources and revoke tokens again.",
        contents(&head)
    ));
    Ok(())
}

fn offline(directory: &Path) -> Result<Vec<u8>, Failure> {
    let snapshot = redb::read(directory).map_err(|error| match &error {
        OpenError::InUse { path } => Failure::usage(format!(
            "{} is in use by a registry: leave --data-dir out to ask that one for the backup",
            path.display()
        )),
        OpenError::Access { path, source } if source.kind() == io::ErrorKind::NotFound => {
            Failure::usage(format!(
                "{} is no registry's data directory: there is no {}",
                directory.display(),
                path.display()
            ))
        }
        other => Failure::job(chain(other)),
    })?;
    Ok(encode(snapshot, SystemTime::now()).flatten().collect())
}

/// What a backup holds, in a few words.
fn contents(head: &Head) -> String {
    format!(
        "{} entries and {} leases of store {} at revision {}, made by release {}",
        head.entries, head.leases, head.store, head.revision, head.software
    )
}

fn is_stream(path: &Path) -> bool {
    path == Path::new("-")
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !is_stream(path) {
        return std::fs::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn exists(path: &Path) -> Failure {
    Failure::usage(format!("{} is there already; name a new file with --out", path.display()))
}

/// Writes a file that nobody else may read, under another name until all of it is on the disk.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::job(format!("cannot write {}: {error}; no backup was made", path.display()))
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    // One left behind by a run that was killed is nobody's.
    let _none = std::fs::remove_file(&partial);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        // Unlike a rename, a link does not replace what came there meanwhile.
        .and_then(|()| std::fs::hard_link(&partial, path));
    let _never_made = std::fs::remove_file(&partial);
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(path)),
        Err(error) => return Err(failed(error)),
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command, RegistryCommand};

    #[test]
    fn a_file_is_private_and_never_replaces_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backup");
        write(&path, b"one").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let error = write(&path, b"two").unwrap_err();
        assert!(matches!(error, Failure::Usage(_)) && error.to_string().contains("there already"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left behind");
        let error = write(&directory.path().join("none/backup"), b"x").unwrap_err();
        assert!(matches!(error, Failure::Job(_)) && error.to_string().contains("none/backup"), "{error}");
    }

    #[test]
    fn the_registry_still_runs_without_a_command() {
        let parse = |line: &str| {
            Args::try_parse_from(line.split_whitespace()).map(|args| match args.command {
                Command::Registry(args) => args,
                other => panic!("{other:?}"),
            })
        };
        let run = parse("outrigger registry --config a.yaml --output json").unwrap();
        assert!(run.command.is_none() && run.run.config == Some("a.yaml".into()));
        let backup = parse("outrigger registry backup --out b").unwrap();
        assert!(matches!(backup.command, Some(RegistryCommand::Backup(_))));
        for bad in [
            "outrigger registry backup",
            "outrigger registry --config a.yaml backup --out b",
            "outrigger registry backup --out b --data-dir d --registry h:1",
            "outrigger registry restore --from b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
