//! Files as berthd leaves them, and as power cuts, disks and other versions leave them.
#![allow(clippy::unwrap_used)]

use berth_core::name::ModelName;
use berth_core::state::{Claim, Home, Times};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use berth_observe::ledger::{read, salvage};

/// As berthd of version 1 wrote it: aeon served, then genesis.
const VERSION_1: &str = include_str!("version-1.txt");

fn state(id: u64) -> State {
    State { last_swap_id: id, boot: "b".to_owned(), ..State::default() }
}

/// A ledger with these states, one a line.
fn ledger(states: &[State]) -> Vec<u8> {
    let header = format!("{NAME}{VERSION}\n");
    let lines = states.iter().map(line);
    std::iter::once(header).chain(lines).collect::<String>().into_bytes()
}

/// Where each line ends, the header's first.
fn ends(bytes: &[u8]) -> Vec<usize> {
    (1..=bytes.len()).filter(|end| bytes[end - 1] == b'\n').collect()
}

#[test]
fn the_last_write_is_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, first, note) = Ledger::open(dir.path()).unwrap();
    assert_eq!((first, note), (State::default(), None));
    for id in 1..=3 {
        ledger.record(&state(id)).unwrap();
    }
    drop(ledger);
    let (_, read, note) = Ledger::open(dir.path()).unwrap();
    assert_eq!((read, note), (state(3), None));
}

#[test]
fn only_one_berthd_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = Ledger::open(dir.path()).unwrap();
    assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Busy { .. })));
    drop(first);
    Ledger::open(dir.path()).unwrap();
}

#[test]
fn it_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _, _) = Ledger::open(dir.path()).unwrap();
    for id in 0..1500 {
        // As if each state were larger than it is here.
        let Body::Sound { size, .. } = &mut ledger.body else { panic!() };
        *size += 1000;
        ledger.record(&state(id)).unwrap();
    }
    assert!(std::fs::metadata(dir.path().join("ledger")).unwrap().len() < COMPACT_AT);
}

fn model() -> impl Strategy<Value = ModelName> {
    // J and * are one flipped bit away from a line's end.
    prop::sample::select(vec!["aeon", "genesis", "qwen3.6-27b", "J"]).prop_map(|name| name.parse().unwrap())
}

/// Made from its JSON, so that it stands whatever fields are added.
fn claim() -> impl Strategy<Value = Claim> {
    let phase = prop::sample::select(vec!["starting", "serving", "ending"]);
    let seen = prop::collection::btree_map(any::<u32>(), any::<u64>(), 0..3);
    let gpus = prop::collection::vec((any::<u32>(), any::<Option<u32>>()), 0..3);
    (phase, "[0-9a-f]{0,8}", seen, gpus).prop_map(|(phase, invocation, seen, gpus)| {
        let gpu = |(index, (bytes, before)): (usize, &(u32, Option<u32>))| {
            json!({ "id": format!("GPU-{index}"), "index": index, "bytes": bytes, "unlisted_before": before,
                "free_before": bytes })
        };
        let gpus: Vec<Value> = gpus.iter().enumerate().map(gpu).collect();
        serde_json::from_value(
            json!({ "gpus": gpus, "phase": phase, "invocation": invocation, "seen": seen }),
        )
        .unwrap()
    })
}

fn states() -> impl Strategy<Value = Vec<State>> {
    let home = (prop::collection::vec(model(), 0..2), any::<bool>());
    let claims = prop::collection::btree_map(model(), claim(), 0..3);
    // Any text, also such that looks like a ledger's own.
    let boot = prop_oneof!["\\PC{0,12}", Just("}\n0} {J*\0".to_owned())];
    let times = prop::collection::btree_map(model(), prop::collection::vec_deque(any::<u64>(), 0..3), 0..2);
    let one = (home, claims, any::<u64>(), boot, times).prop_map(
        |((models, default), claims, last_swap_id, boot, times)| State {
            home: Home { default: models.first().filter(|_| default).cloned(), models },
            claims,
            last_swap_id,
            boot,
            times: times
                .into_iter()
                .map(|(model, load)| (model, Times { load, ..Times::default() }))
                .collect(),
            ..State::default()
        },
    );
    prop::collection::vec(one, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// A power cut at any byte: the last state that was reported as done, or, within the part that is synced before
    /// the file has its name, an error.
    #[test]
    fn every_prefix_gives_the_last_state_that_was_written(states in states()) {
        let bytes = ledger(&states);
        let ends = ends(&bytes);
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let good = whole.checked_sub(1).map_or(0, |last| ends[last]);
            match read(&bytes[..cut]) {
                Ok(read) => {
                    prop_assert!(whole >= 2, "{cut}: a state of which no line is whole");
                    prop_assert_eq!(&read.state, &states[whole - 2], "{}", cut);
                    prop_assert_eq!(read.torn, cut - good, "{}", cut);
                }
                Err(error) => prop_assert!(whole < 2, "{cut}: {error}"),
            }
            // What file systems leave of a write that was cut off.
            if whole >= 2 && cut > good {
                let mut holed = bytes[..cut].to_vec();
                holed.extend([0; 3]);
                let read = read(&holed);
                prop_assert_eq!(read.map(|read| read.state), Ok(states[whole - 2].clone()), "{}, holed", cut);
            }
        }
    }

    /// A bit that flips anywhere is damage: never a state, be it a wrong one or one that was overtaken.
    #[test]
    fn every_flipped_bit_is_an_error(states in states()) {
        let mut bytes = ledger(&states);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let read = read(&bytes);
                prop_assert!(read.is_err(), "byte {at}, bit {bit}: {read:?}");
                // All that a repair may take for true was written once. One bit of each byte: it takes its time.
                if bit == at % 8 && let Some((_, state)) = salvage(&bytes) {
                    prop_assert!(states.contains(&state), "byte {at}, bit {bit}: {state:?}");
                }
                bytes[at] ^= 1 << bit;
            }
        }
    }
}

/// What is wrong with these bytes.
fn why(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn damage_is_named_by_its_line() {
    let bytes = ledger(&[state(1), state(2), state(3)]);
    let ends = ends(&bytes);
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(why(&with(ends[0] + 20, b'~')), "line 2 is damaged (its checksum is wrong)");
    assert_eq!(why(&with(ends[2] + 20, b'~')), "line 4 is damaged (its checksum is wrong)");
    assert_eq!(why(&with(ends[2] + 20, 0)), "line 4 is damaged (its checksum is wrong)");
    assert_eq!(why(&with(ends[2], b'A')), "line 4 is damaged (it has no checksum)");
    assert_eq!(why(&with(ends[1] - 1, b'~')), "line 2 is damaged (its checksum is wrong)");
    assert_eq!(why(&with(ends[3] - 1, b'~')), "line 4 is damaged (it has no end)");
    assert_eq!(why(&bytes[..ends[1] - 1]), "line 2 is damaged (it has no end)");
    assert_eq!(why(&bytes[..ends[0]]), "line 2 is damaged (it is missing)");
    assert_eq!(why(b""), "line 1 is damaged (it has no end)");
    assert_eq!(why(b"\n"), "line 1 is damaged (it is not `berth-ledger 2`)");
    // A torn write after a line whose end is damaged: that line was reported as done.
    assert_eq!(why(&with(ends[2] - 1, b'~')[..ends[3] - 9]), "line 3 is damaged (it has no end)");
    // A right checksum over what is no state.
    let json = r#"{"home":7}"#;
    let other = format!("{NAME}{VERSION}\n{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
    let error = why(other.as_bytes());
    assert!(error.starts_with("line 2 is damaged (another version wrote it: "), "{error}");
}

#[test]
fn a_newer_version_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let newer = String::from_utf8(ledger(&[state(1)])).unwrap().replace("ledger 2", "ledger 3");
    std::fs::write(dir.path().join("ledger"), &newer).unwrap();
    let (ledger, state, _) = Ledger::open(dir.path()).unwrap();
    assert_eq!(state, State::default());
    let refusal = ledger.damage().unwrap().refusal();
    assert_eq!(refusal.code, "ledger_damaged");
    assert!(refusal.text.contains("begins with `berth-ledger 3`: a newer Berth wrote it"), "{refusal:?}");
    assert!(refusal.hints[0].contains("install the newer version"), "{refusal:?}");
    assert_eq!(ledger.salvage().unwrap(), None, "what a newer version means is not known");
    assert_eq!(std::fs::read_to_string(dir.path().join("ledger")).unwrap(), newer);
}

/// All that `old` has is in `new`, which may have more.
fn keeps(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.iter().all(|(key, value)| new.get(key).is_some_and(|new| keeps(value, new)))
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| keeps(old, new))
        }
        (old, new) => old == new,
    }
}

#[test]
fn version_1_is_read_to_the_same_state_and_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ledger"), VERSION_1).unwrap();
    let (ledger, read, note) = Ledger::open(dir.path()).unwrap();
    assert_eq!(
        note.unwrap(),
        format!("ledger {}: was of version 1, written anew as 2", dir.path().join("ledger").display())
    );
    assert_eq!(read.home.models, ["genesis".parse().unwrap()]);
    assert_eq!(read.last_swap_id, 2);
    let mut last: Value =
        serde_json::from_str(VERSION_1.lines().last().unwrap().split_once(' ').unwrap().1).unwrap();
    // Which swap was under way: what it was to come to was not written then.
    assert_eq!(last.as_object_mut().unwrap().remove("swap"), Some(Value::Null));
    let kept = serde_json::to_value(&read).unwrap();
    assert!(keeps(&last, &kept), "{last:#}\n{kept:#}");
    drop(ledger);

    let bytes = std::fs::read(dir.path().join("ledger")).unwrap();
    assert!(bytes.starts_with(b"berth-ledger 2\n"));
    let (_, again, note) = Ledger::open(dir.path()).unwrap();
    assert_eq!((again, note), (read, None));

    // A torn tail and an older version at once.
    std::fs::write(dir.path().join("ledger"), format!("{VERSION_1}0badcafe {{\"ho")).unwrap();
    let note = Ledger::open(dir.path()).unwrap().2.unwrap();
    assert!(note.contains("cut off 13 bytes") && note.contains("version 1"), "{note}");
}

/// A damaged ledger is not touched and takes no write, until what can be told of it begins a new one.
#[test]
fn a_damaged_ledger_is_kept_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut damaged = ledger(&[state(1), state(2), state(3)]);
    let end = *ends(&damaged).last().unwrap();
    damaged[end - 3] ^= 4;
    std::fs::write(&path, &damaged).unwrap();
    let (mut ledger, read, note) = Ledger::open(dir.path()).unwrap();
    assert_eq!((read, note), (State::default(), None));
    assert!(matches!(ledger.record(&state(9)), Err(LedgerError::Damaged { .. })));
    let refusal = ledger.damage().unwrap().refusal();
    assert_eq!(
        (refusal.code.as_str(), &refusal.hints[..]),
        ("ledger_damaged", &["berthctl repair".to_owned()][..])
    );
    assert!(refusal.text.contains(&format!("ledger {}: line 4 is damaged", path.display())), "{refusal:?}");
    assert_eq!(std::fs::read(&path).unwrap(), damaged, "it was changed");

    let (line, newest) = ledger.salvage().unwrap().unwrap();
    assert_eq!((line, &newest), (3, &state(2)));
    // The names of this second and the next are taken: what was kept before stays.
    for taken in [70, 71] {
        std::fs::write(dir.path().join(format!("ledger.damaged-{taken}")), "before").unwrap();
    }
    // What can't be written changes nothing.
    std::fs::create_dir(dir.path().join("ledger.new")).unwrap();
    assert!(matches!(ledger.replace(&newest, 60), Err(LedgerError::Io { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), damaged, "it was changed");
    assert!(ledger.damage().is_some());
    std::fs::remove_dir(dir.path().join("ledger.new")).unwrap();

    let aside = ledger.replace(&newest, 70).unwrap().unwrap();
    assert_eq!(aside, dir.path().join("ledger.damaged-72"));
    assert_eq!(std::fs::read(&aside).unwrap(), damaged);
    assert_eq!(std::fs::read_to_string(dir.path().join("ledger.damaged-70")).unwrap(), "before");
    assert!(ledger.damage().is_none());
    ledger.record(&state(4)).unwrap();
    drop(ledger);
    let (_, read, note) = Ledger::open(dir.path()).unwrap();
    assert_eq!((read, note), (state(4), None));
}

/// The newest line that is whole counts, wherever the damage is; one that was never reported as done does not.
#[test]
fn what_a_damaged_ledger_still_tells() {
    let bytes = ledger(&[state(1), state(2), state(3)]);
    let ends = ends(&bytes);
    let told = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        assert!(read(&bytes).is_err());
        salvage(&bytes).map(|(line, state)| (line, state.last_swap_id))
    };
    assert_eq!(told(&|bytes| bytes[ends[0] + 12] ^= 1), Some((4, 3)));
    assert_eq!(told(&|bytes| bytes[2] ^= 1), Some((4, 3)), "the header");
    assert_eq!(told(&|bytes| bytes[ends[3] - 1] = b'x'), Some((4, 3)), "the last end");
    assert_eq!(told(&|bytes| bytes[ends[2] - 1] = b'x'), Some((3, 3)), "an end in the middle");
    assert_eq!(
        told(&|bytes| for end in [0, 1, 2] {
            bytes[ends[end] + 12] ^= 1;
        }),
        None
    );
    let unreported = |bytes: &mut Vec<u8>| {
        bytes[ends[0] + 12] ^= 1;
        bytes.pop();
    };
    assert_eq!(told(&unreported), Some((3, 2)));
    assert_eq!(told(&|bytes| bytes.clear()), None);
}
