use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::{Condition, Op};

fn open(directory: &Path) -> Result<RedbStore, OpenError> {
    RedbStore::open(directory, &Metrics::new())
}

fn put(key: &str, value: &str) -> Txn {
    let mut txn = Txn::default();
    txn.put(key, value.to_owned());
    txn
}

fn leased(key: &str, lease: LeaseId) -> Txn {
    let op = Op::Put { key: key.to_owned(), value: "v".into(), lease: Some(lease) };
    Txn { conditions: vec![], ops: vec![op] }
}

async fn keys(store: &RedbStore, prefix: &str, at: Option<Revision>) -> Vec<String> {
    let range = store.range(prefix, at).await.unwrap();
    range.entries.iter().map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value))).collect()
}

#[tokio::test]
async fn writes_are_compare_and_set_and_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let mut first = put("a", "1");
    first.expect("a", None);
    let revision = store.commit(first.clone()).await.unwrap();
    assert_eq!(store.commit(first).await, Err(StoreError::Conflict { key: "a".into() }));
    let mut second = put("b", "2");
    second.put("a", "2");
    second.conditions = vec![Condition::Unchanged("a".into(), revision)];
    let next = store.commit(second.clone()).await.unwrap();
    assert_eq!(next, revision + 1);
    assert_eq!(store.commit(second).await, Err(StoreError::Conflict { key: "a".into() }));
    assert_eq!(keys(&store, "", None).await, ["a=2", "b=2"]);
    assert_eq!(store.commit(Txn::default()).await, Ok(next), "nothing to do has no revision of its own");
}

#[tokio::test]
async fn of_many_who_set_the_same_key_at_once_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()).unwrap());
    let tasks = outrigger_common::tasks::Tasks::current();
    let attempts: Vec<_> = (0..50)
        .map(|n| {
            let store = store.clone();
            tasks.spawn_joinable("attempt", async move {
                let mut txn = put("root", &n.to_string());
                txn.expect("root", None);
                store.commit(txn).await.is_ok()
            })
        })
        .collect();
    let mut won = 0;
    for attempt in attempts {
        won += usize::from(attempt.await.unwrap());
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn ranges_read_a_prefix_at_any_remembered_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.commit(put("a/1", "old")).await.unwrap();
    let at = store.commit(put("a/2", "x")).await.unwrap();
    store.commit(put("b/1", "other")).await.unwrap();
    let mut txn = put("a/1", "new");
    txn.ops.push(Op::Delete("a/2".into()));
    txn.put("a/3", "y");
    store.commit(txn).await.unwrap();
    assert_eq!(keys(&store, "a/", None).await, ["a/1=new", "a/3=y"]);
    assert_eq!(keys(&store, "a/", Some(at)).await, ["a/1=old", "a/2=x"]);
    drop(store);
    let store = open(dir.path()).unwrap();
    assert!(matches!(store.range("a/", Some(at)).await, Err(StoreError::Compacted { .. })));
}

#[tokio::test]
async fn watchers_see_whole_transactions_in_order_and_late_ones_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let mut watch = store.watch(1).await.unwrap();
    let mut txn = put("a", "1");
    txn.put("b", "1");
    store.commit(txn).await.unwrap();
    for n in 0..3 {
        store.commit(put("c", &n.to_string())).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(watch.next().await.unwrap().iter().map(|t| (t.revision, t.changes.len())));
    }
    assert_eq!(seen, [(1, 2), (2, 1), (3, 1), (4, 1)]);
    // One transaction that is larger than what is remembered pushes all before it out.
    let mut early = store.watch(2).await.unwrap();
    let large = "x".repeat(HISTORY_BYTES);
    store.commit(put("large", &large)).await.unwrap();
    assert!(matches!(early.next().await, Err(StoreError::Compacted { .. })));
}

#[tokio::test]
async fn keys_vanish_with_their_lease_in_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let lease = store.grant(Duration::from_millis(200)).await.unwrap();
    store.commit(leased("w/1", lease)).await.unwrap();
    store.commit(leased("w/2", lease)).await.unwrap();
    store.commit(put("kept", "v")).await.unwrap();
    let mut watch = store.watch(4).await.unwrap();
    let transactions = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
    assert_eq!(transactions[0].changes.len(), 2);
    assert!(transactions[0].changes.iter().all(|change| change.after.is_none()));
    assert_eq!(keys(&store, "", None).await, ["kept=v"]);
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseGone(lease)));
    assert_eq!(store.commit(leased("w/3", lease)).await, Err(StoreError::LeaseGone(lease)));
    assert_eq!(store.lease(lease).await, Ok(None));
}

#[tokio::test]
async fn no_lease_ends_while_clients_wait_to_be_connected() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let crowd = std::sync::atomic::AtomicBool::new(true);
    let lease = store.grant(Duration::from_millis(400)).await.unwrap();
    store.commit(leased("w/1", lease)).await.unwrap();
    let mut watch = store.watch(2).await.unwrap();
    let waiting = async {
        let early = tokio::time::timeout(Duration::from_millis(1600), watch.next()).await;
        assert!(early.is_err(), "its renewal may be among what is not read yet");
        crowd.store(false, std::sync::atomic::Ordering::Relaxed);
        tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap();
    };
    tokio::select! {
        () = waiting => {}
        () = store.attend(|| crowd.load(std::sync::atomic::Ordering::Relaxed)) => {}
    }
    assert_eq!(keys(&store, "", None).await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_revoked_lease_takes_its_keys_and_a_moved_key_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let (old, new) = (
        store.grant(Duration::from_secs(60)).await.unwrap(),
        store.grant(Duration::from_secs(60)).await.unwrap(),
    );
    store.commit(leased("w/1", old)).await.unwrap();
    store.commit(leased("w/2", old)).await.unwrap();
    store.commit(leased("w/1", new)).await.unwrap();
    store.revoke(old).await.unwrap();
    assert_eq!(keys(&store, "w/", None).await, ["w/1=v"]);
    assert_eq!(store.revoke(old).await, Err(StoreError::LeaseGone(old)));
    store.revoke(new).await.unwrap();
    assert_eq!(keys(&store, "w/", None).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart_and_leases_start_over() {
    let dir = tempfile::tempdir().unwrap();
    let ttl = Duration::from_secs(60);
    let (id, lease, revision) = {
        let store = open(dir.path()).unwrap();
        let lease = store.grant(ttl).await.unwrap();
        store.commit(leased("w/1", lease)).await.unwrap();
        let revision = store.commit(put("a", "1")).await.unwrap();
        (store.id().to_owned(), lease, revision)
    };
    let store = open(dir.path()).unwrap();
    assert_eq!((store.id(), store.range("", None).await.unwrap().revision), (id.as_str(), revision));
    assert_eq!(keys(&store, "", None).await, ["a=1", "w/1=v"]);
    let state = store.lease(lease).await.unwrap().unwrap();
    assert!(state.ttl == ttl && state.remaining > ttl - Duration::from_secs(5), "{state:?}");
    assert_eq!(store.commit(put("b", "1")).await, Ok(revision + 1));
    store.revoke(lease).await.unwrap();
    assert!(store.entry("w/1").await.unwrap().is_none());
}

#[tokio::test]
async fn a_closed_store_refuses_and_lets_go_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::InUse { .. })));
    store.close();
    assert_eq!(store.commit(put("a", "1")).await, Err(StoreError::Closed));
    open(dir.path()).unwrap();
}

#[test]
fn files_are_private() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let _store = open(&dir).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join(FILE_NAME)), mode(&dir.join("lock"))), (0o700, 0o600, 0o600));
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path()).unwrap();
        for n in 0..200 {
            store.commit(put(&format!("key/{n}"), &"value".repeat(50))).await.unwrap();
        }
    }
    let path = dir.path().join(FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    let overwritten = {
        let mut bytes = whole.clone();
        // Every page but the header's.
        for byte in bytes.iter_mut().skip(8192).step_by(97) {
            *byte ^= 0x5a;
        }
        bytes
    };
    for damaged in [Vec::new(), b"not a store".to_vec(), whole[..whole.len() / 2].to_vec(), overwritten] {
        std::fs::write(&path, &damaged).unwrap();
        let error = open(dir.path()).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{} bytes: {error:?}", damaged.len());
        let text = error.to_string();
        assert!(text.contains("registry.redb") && text.contains("outrigger registry restore"), "{text}");
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(keys(&open(dir.path()).unwrap(), "key/", None).await.len(), 200);
}

#[test]
fn a_data_directory_that_is_a_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let text = open(&file).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains(file.to_str().unwrap()) && text.contains("data_dir"), "{text}");
}

#[tokio::test]
async fn a_restored_store_holds_the_same_under_the_same_id_in_a_history_of_its_own() {
    let (dir, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (id, history, snapshot) = {
        let store = open(dir.path()).unwrap();
        store.commit(put("a", "1")).await.unwrap();
        let lease = store.grant(Duration::from_secs(60)).await.unwrap();
        let _unused = store.grant(Duration::from_secs(60)).await.unwrap();
        store.commit(leased("w/1", lease)).await.unwrap();
        let snapshot = store.snapshot().await.unwrap();
        assert_eq!(snapshot.leases, [(lease, Duration::from_secs(60))]);
        store.commit(put("later", "1")).await.unwrap();
        (store.id().to_owned(), store.history().to_owned(), snapshot)
    };
    assert_eq!(id, history);
    let mut histories = vec![history];
    for name in ["one", "two"] {
        let target = away.path().join(name);
        restore(&target, &snapshot).unwrap();
        let store = open(&target).unwrap();
        assert_eq!(store.id(), id);
        assert_eq!(store.snapshot().await.unwrap(), snapshot);
        let lease = snapshot.leases[0].0;
        assert!(store.lease(lease).await.unwrap().unwrap().remaining > Duration::from_secs(50));
        assert_eq!(store.commit(put("b", "1")).await.unwrap(), snapshot.revision + 1);
        let history = store.history().to_owned();
        drop(store);
        assert_eq!(open(&target).unwrap().history(), history, "it stays over a restart");
        histories.push(history);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&target), mode(&target.join(FILE_NAME))), (0o700, 0o600));
    }
    histories.sort();
    histories.dedup();
    assert_eq!(histories.len(), 3, "{histories:?}");
}

#[tokio::test]
async fn a_store_is_restored_into_an_empty_directory_alone() {
    let (dir, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let snapshot = open(dir.path()).unwrap().snapshot().await.unwrap();
    let before = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
    let error = restore(dir.path(), &snapshot).unwrap_err().to_string();
    assert!(error.contains(dir.path().to_str().unwrap()) && error.contains("move this one away"), "{error}");
    assert_eq!(std::fs::read(dir.path().join(FILE_NAME)).unwrap(), before);
    std::fs::create_dir(away.path().join("lost+found")).unwrap();
    restore(away.path(), &snapshot).unwrap();
    let file = away.path().join("lost+found/file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(restore(&file, &snapshot), Err(RestoreError::Open(OpenError::Access { .. }))));
}

#[tokio::test]
async fn an_unused_store_is_read_and_one_that_is_not_there_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(dir.path()), Err(OpenError::Access { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let store = open(dir.path()).unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    store.commit(leased("w/1", lease)).await.unwrap();
    assert!(matches!(read(dir.path()), Err(OpenError::InUse { .. })));
    let snapshot = store.snapshot().await.unwrap();
    drop(store);
    assert_eq!(read(dir.path()).unwrap(), snapshot);
}
