#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// Cores of a kind, each with so many threads whose numbers follow each other.
fn cores(kind: CoreKind, from: u32, cores: u32, threads: u32) -> Vec<Cpu> {
    (from..from + cores * threads).map(|id| Cpu { id, core: id - (id - from) % threads, kind }).collect()
}

/// Core Ultra 7 265F: eight fast cores and twelve economical ones, a thread each.
fn tower() -> Known<Vec<Cpu>> {
    let all = [cores(CoreKind::Performance, 0, 8, 1), cores(CoreKind::Efficiency, 8, 12, 1)];
    Known::Value(all.concat())
}

/// i5-1235U: two fast cores of two threads, eight economical ones of one.
fn beelink() -> Known<Vec<Cpu>> {
    let all = [cores(CoreKind::Performance, 0, 2, 2), cores(CoreKind::Efficiency, 4, 8, 1)];
    Known::Value(all.concat())
}

/// A server of eight cores whose second threads are numbered after all the first ones.
fn server() -> Known<Vec<Cpu>> {
    let cpu = |id| Cpu { id, core: id % 8, kind: CoreKind::Performance };
    Known::Value((0..16).map(cpu).collect())
}

fn chosen(cores: &str, cpus: &Known<Vec<Cpu>>) -> String {
    match cores.parse::<Cores>().unwrap().choose(cpus) {
        Ok(found) if found.is_empty() => "all".to_owned(),
        Ok(found) => Numbers(&found).to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn sets_are_chosen_by_core_and_kind() {
    for (cores, on_tower, on_beelink, on_server) in [
        ("all", "all", "all", "all"),
        ("physical", "0-19", "0,2,4-11", "0-7"),
        ("performance", "0-7", "0,2", "0-7"),
        ("0x3F5", "0,2,4-9", "0,2,4-9", "0,2,4-9"),
        ("9,0-1,1", "0-1,9", "0-1,9", "0-1,9"),
    ] {
        assert_eq!(chosen(cores, &tower()), on_tower, "{cores}");
        assert_eq!(chosen(cores, &beelink()), on_beelink, "{cores}");
        assert_eq!(chosen(cores, &server()), on_server, "{cores}");
    }
    assert_eq!(chosen("efficiency", &tower()), "8-19");
    assert_eq!(chosen("efficiency", &beelink()), "4-11");
}

#[test]
fn a_set_that_cannot_be_had_says_why() {
    assert_eq!(
        chosen("efficiency", &server()),
        "this machine has no efficiency cores: its 8 cores are of one kind; `physical` takes one thread of each"
    );
    assert_eq!(chosen("4-13", &beelink()), "processors 12-13 are not online here; those that are: 0-11");
    assert_eq!(chosen("0x10000", &server()), "processor 16 is not online here; those that are: 0-15");
    let unknown = Known::Unknown("/sys is not mounted".to_owned());
    assert_eq!(chosen("all", &unknown), "all", "all need not be known");
    for cores in ["physical", "0"] {
        assert_eq!(
            chosen(cores, &unknown),
            "which processors this machine has is unknown: /sys is not mounted"
        );
    }
}

#[test]
fn what_people_write_is_read_and_shown() {
    for (written, shown) in [
        ("all", "all"),
        (" physical ", "physical"),
        ("performance", "performance"),
        ("efficiency", "efficiency"),
        ("0,2,4-9", "0,2,4-9"),
        ("0x3F5", "0,2,4-9"),
        ("0X03f5", "0,2,4-9"),
        ("7", "7"),
        ("3, 1 - 2", "1-3"),
        ("1023", "1023"),
        (&format!("0x8{}", "0".repeat(255)), "1023"),
    ] {
        assert_eq!(written.parse::<Cores>().unwrap().to_string(), shown, "{written}");
    }
}

#[test]
fn what_is_no_set_is_refused_with_the_reason() {
    for (written, reason) in [
        ("", "names no processor"),
        ("0x0", "names no processor"),
        ("fast", "is no set of processors; write all, physical"),
        ("3F5", "is no set of processors"),
        ("0x", "is no set of processors"),
        ("0xg", "is no set of processors"),
        ("1,,2", "is no set of processors"),
        ("-1", "is no set of processors"),
        ("+1", "is no set of processors"),
        ("1-2-3", "is no set of processors"),
        ("0x-1", "is no set of processors"),
        ("9-4", "has the range 9-4, which ends before it begins"),
        ("1024", "names processor 1024; they are numbered up to 1023"),
        ("0-4294967296", "names processor 4294967296; they are numbered up to 1023"),
        (&format!("0x1{}", "0".repeat(256)), "names processor 1024"),
    ] {
        let error = written.parse::<Cores>().unwrap_err().to_string();
        assert!(error.contains(reason), "{written}: {error}");
    }
    assert_eq!(list("\n").unwrap(), Vec::<u32>::new(), "the kernel's own empty list is a list");
}

#[test]
fn llama_cpp_is_told_a_mask() {
    for (cpus, text) in
        [(&[0, 2, 4, 5, 6, 7, 8, 9][..], "3f5"), (&[0], "1"), (&[64], "10000000000000000"), (&[], "0")]
    {
        assert_eq!(mask(cpus), text);
    }
}

proptest! {
    #[test]
    fn each_form_says_the_same(set in prop::collection::btree_set(0..NUMBERS, 1..40)) {
        let cpus: Vec<u32> = set.into_iter().collect();
        let these = Cores::These(cpus.clone());
        prop_assert_eq!(&these.to_string().parse::<Cores>().unwrap(), &these);
        prop_assert_eq!(&format!("0x{}", mask(&cpus)).parse::<Cores>().unwrap(), &these);
    }

    #[test]
    fn nothing_that_is_written_breaks_it(text in "[0-9a-fxX,\\- ]{0,300}|.{0,40}") {
        let _ = text.parse::<Cores>();
    }
}
