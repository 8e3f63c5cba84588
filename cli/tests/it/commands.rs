//! Commands that need nobody: help, version, completions, and what is refused before anything is asked.

use serde_json::Value;

use crate::harness::{file, run, stderr, stdout};

#[test]
fn version_is_for_people_and_for_programs() {
    let output = run(&["version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).starts_with(&format!("outrigger {} linux/", env!("CARGO_PKG_VERSION"))));
    let json: Value = serde_json::from_slice(&run(&["version", "--output", "json"]).stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["watch_protocol"], 1);
}

#[test]
fn help_lists_the_commands_and_wrong_arguments_exit_with_2() {
    let help = stdout(&run(&["--help"]));
    for command in ["demo", "proxy", "registry", "apply", "get", "token", "version", "completions"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
    for args in [
        &[][..],
        &["nonsense"],
        &["demo", "--rate", "x"],
        &["demo", "--duration", "20"],
        &["apply"],
        &["get", "pods"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!stderr(&output).is_empty() && !stderr(&output).contains('\x1b'), "{args:?}");
    }
}

#[test]
fn completions_know_every_command_and_no_other() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let script = stdout(&output);
        assert!(script.contains("completions") && script.contains("demo"), "{shell}");
        assert!(!script.contains("order-service"), "{shell}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_starts() {
    for args in [
        &["demo", "--chaos", "--rate", "0"][..],
        &["demo", "--chaos", "--replicas", "1"],
        &["demo", "--replicas", "0"],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_wrong_resource_is_named_by_file_line_and_key_without_a_registry() {
    let directory = tempfile::tempdir().unwrap();
    let service = "apiVersion: outrigger.dev/v1alpha1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec:\n  ports:\n    - {port: PORT}\n";
    let good = file(directory.path(), "good.yaml", &service.replace("PORT", "80"));
    let bad = file(directory.path(), "bad.yaml", &service.replace("PORT", "0"));
    for args in [&["apply", "-f", &good, "-f", &bad][..], &["apply", "-f", &bad, "--dry-run"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.contains("bad.yaml:6: spec.ports[0].port") && text.contains("1 to 65535"), "{text}");
        assert_eq!(stdout(&output), "");
    }
    let unknown =
        file(directory.path(), "unknown.yaml", &service.replace("{port: PORT}", "{port: 80, nodePort: 1}"));
    let text = stderr(&run(&["apply", "-f", &unknown]));
    assert!(text.contains("unknown.yaml:6") && text.contains("nodePort"), "{text}");
    let missing = run(&["apply", "-f", "/nowhere.yaml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("/nowhere.yaml"));
    let empty = file(directory.path(), "empty.yaml", "# nothing\n");
    assert_eq!(run(&["apply", "-f", &empty]).status.code(), Some(2));
}

#[test]
fn a_missing_identity_names_the_directory_and_the_remedy() {
    let output = run(&["get", "services", "--identity", "/nowhere/admin"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("/nowhere/admin") && text.contains("--identity"), "{text}");
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let mut child = crate::harness::outrigger(&["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}
