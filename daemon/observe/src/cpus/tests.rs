#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use berth_core::cpus::Numbers;
use berth_core::policy::Cores;

use super::*;

/// A `/sys/devices` as recorded: files by their path, each with its text.
struct Sys(tempfile::TempDir);

impl Sys {
    fn new(online: &str) -> Self {
        let sys = Self(tempfile::tempdir().unwrap());
        sys.write("system/cpu/online", online);
        sys
    }

    fn write(&self, path: &str, text: &str) {
        let file: PathBuf = self.0.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("{text}\n")).unwrap();
    }

    /// For each of these processors a file below its folder.
    fn each(&self, cpus: impl IntoIterator<Item = u32>, file: &str, text: impl Fn(u32) -> String) {
        for cpu in cpus {
            self.write(&format!("system/cpu/cpu{cpu}/{file}"), &text(cpu));
        }
    }

    fn cpus(&self) -> Known<Vec<Cpu>> {
        below(self.0.path())
    }

    /// What a policy would choose: physical, performance, efficiency.
    fn kinds(&self) -> [String; 3] {
        let cpus = self.cpus();
        [Cores::Physical, Cores::Performance, Cores::Efficiency].map(|cores| match cores.choose(&cpus) {
            Ok(found) => Numbers(&found).to_string(),
            Err(_) => "-".to_owned(),
        })
    }
}

const CORE: &str = "topology/core_cpus_list";

/// Core Ultra 7 265F: eight fast cores, twelve economical ones, no second threads. The kernel counts capacities too, by
/// which its economical cores come close to the fast ones.
#[test]
fn a_hybrid_without_second_threads() {
    let sys = Sys::new("0-19");
    sys.each(0..20, CORE, |cpu| cpu.to_string());
    sys.each(0..8, "cpu_capacity", |_| "1024".to_owned());
    sys.each(8..20, "cpu_capacity", |_| "860".to_owned());
    sys.write("cpu_core/cpus", "0-7");
    sys.write("cpu_atom/cpus", "8-19");
    assert_eq!(sys.kinds(), ["0-19", "0-7", "8-19"]);
}

/// i5-1235U: two fast cores of two threads, eight economical ones.
fn beelink(online: &str) -> Sys {
    let sys = Sys::new(online);
    sys.each(0..4, CORE, |cpu| format!("{}-{}", cpu & !1, cpu | 1));
    sys.each(4..12, CORE, |cpu| cpu.to_string());
    sys.write("cpu_core/cpus", "0-3");
    sys.write("cpu_atom/cpus", "4-11");
    sys
}

#[test]
fn a_hybrid_with_second_threads() {
    assert_eq!(beelink("0-11").kinds(), ["0,2,4-11", "0,2", "4-11"]);
    // Whoever named eight of its ten cores by a mask meant the first threads and six of the economical ones.
    let mask: Cores = "0x3F5".parse().unwrap();
    assert_eq!(mask.choose(&beelink("0-11").cpus()).unwrap(), [0, 2, 4, 5, 6, 7, 8, 9]);
    // With processors offline the lowest that is left stands for its core.
    let left = beelink("1-9");
    assert_eq!(left.kinds(), ["1-2,4-9", "1-2", "4-9"]);
    let cores: Vec<u32> = left.cpus().value().unwrap().iter().map(|cpu| cpu.core).collect();
    assert_eq!(cores, [1, 2, 2, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn a_laptop_with_a_third_kind() {
    let sys = Sys::new("0-5");
    sys.write("cpu_core/cpus", "0-1");
    sys.write("cpu_atom/cpus", "2-3");
    sys.write("cpu_lowpower/cpus", "4-5");
    assert_eq!(sys.kinds(), ["0-5", "0-1", "2-5"]);
}

/// Second threads are numbered after all first ones, and some cores may clock a little higher.
#[test]
fn a_server_with_second_threads() {
    let sys = Sys::new("0-15");
    sys.each(0..16, "topology/thread_siblings_list", |cpu| format!("{},{}", cpu % 8, cpu % 8 + 8));
    sys.each(0..16, "cpufreq/cpuinfo_max_freq", |cpu| (5_000_000 + u64::from(cpu % 8) * 70_000).to_string());
    assert_eq!(sys.kinds(), ["0-7", "0-7", "-"]);
}

/// Three kinds of cores on Arm: the two faster ones are near enough.
#[test]
fn big_little() {
    let sys = Sys::new("0-7");
    sys.each(0..8, CORE, |cpu| cpu.to_string());
    sys.each(0..4, "cpu_capacity", |_| "325".to_owned());
    sys.each(4..7, "cpu_capacity", |_| "870".to_owned());
    sys.each([7], "cpu_capacity", |_| "1024".to_owned());
    assert_eq!(sys.kinds(), ["0-7", "4-7", "0-3"]);
}

/// AMD's dense cores have the same capacity by the kernel's count and clock lower.
#[test]
fn cores_that_clock_lower() {
    let sys = Sys::new("0-3");
    sys.each(0..4, "cpu_capacity", |_| "1024".to_owned());
    sys.each(0..2, "cpufreq/cpuinfo_max_freq", |_| "5157000".to_owned());
    sys.each(2..4, "cpufreq/cpuinfo_max_freq", |_| "3300000".to_owned());
    assert_eq!(sys.kinds(), ["0-3", "0-1", "2-3"]);
}

#[test]
fn where_the_kernel_tells_little_all_are_alike() {
    let sys = Sys::new("0-3");
    assert_eq!(sys.kinds(), ["0-3", "0-3", "-"]);
    // What is told of some only is nothing to compare by.
    sys.each([0, 1], "cpu_capacity", |cpu| (cpu * 500 + 100).to_string());
    assert_eq!(sys.kinds(), ["0-3", "0-3", "-"]);
}

#[test]
fn without_a_list_they_are_unknown() {
    let nowhere = below(Path::new("/nowhere"));
    assert!(nowhere.why_unknown().unwrap().contains("/nowhere/system/cpu/online can't be read"));
    for (online, why) in
        [("", "names no processor"), ("zero", "can't be read: `zero` is no set of processors")]
    {
        let cpus = Sys::new(online).cpus();
        assert!(cpus.why_unknown().unwrap().contains(why), "{cpus:?}");
    }
}

#[test]
fn this_machine_has_the_one_that_runs_this() {
    let here = online();
    let cpus = here.value().unwrap();
    assert!(!cpus.is_empty());
    assert!(cpus.iter().all(|cpu| cpu.core <= cpu.id && cpus.iter().any(|other| other.id == cpu.core)));
}
