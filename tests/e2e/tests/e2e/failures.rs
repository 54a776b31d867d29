//! Starts that fail (S11, and rule 5 of "what always holds"): each is known by what it is, said in one sentence,
//! and what served before serves again, where it was. And models that die while they serve.

use std::process::Child;
use std::time::Duration;

use berth_core::backend::FailureClass;
use berth_core::report::{ModelState, Outcome, Step, StepState, Verb};
use berth_tests::{Berth, Builder, Told, declaration};

/// More than half of a card.
const EACH: &str = "14300MiB";
/// More than a card has.
const TOO_MUCH: &str = "16000MiB";

/// Long enough for what berthd does by itself a moment later.
const BY_ITSELF: Duration = Duration::from_secs(20);

/// What the file of a model says that must be ready within two seconds (some more, since its memory grew before).
const SOON: &str = "deadlines = { start = \"2s\" }\n";

/// A fakellm that is declared with what fits and takes `each` instead.
fn takes(each: &str, flags: &str) -> String {
    declaration(&format!("/usr/bin/fakellm --vram-each {each} {flags}"), 2, EACH)
}

fn with_aeon() -> Builder {
    Berth::builder().fake("aeon", EACH, &[])
}

/// Switches from aeon to a model that fails, and sees aeon serve again as if nothing had been.
#[track_caller]
fn fails(berth: &Berth, model: &str, class: FailureClass, words: &[&str]) -> Told {
    let told = berth.told(4, &["switch", model]);
    let text = told.output.to_string();
    assert_fell_back(berth, &told, model, class, words);
    assert!(text.contains("aeon serves again."), "{text}");
    assert!(text.contains(&format!("Full log: berthctl logs {model}")), "{text}");
    told
}

#[track_caller]
fn assert_fell_back(berth: &Berth, told: &Told, model: &str, class: FailureClass, words: &[&str]) {
    let reason = told.reason();
    assert!(reason.starts_with(&format!("{model} did not start: ")), "{reason}");
    for word in words {
        assert!(reason.contains(word), "`{word}` is not in: {reason}");
    }
    assert_eq!(told.swap.failure.as_ref().map(|failure| failure.class), Some(class), "{:?}", told.swap);
    assert_eq!(told.swap.outcome, Some(Outcome::Restored));
    let failed = told.swap.steps.iter().find(|step| step.state == StepState::Failed).unwrap();
    assert_eq!((failed.step, failed.rollback), (Step::Ready, false), "{failed:?}");
    berth.assert_home("aeon");
    assert!(matches!(berth.state_of(model), ModelState::Off | ModelState::TooBig));
    let status = berth.status();
    let failed = status.models.iter().find(|declared| declared.name.as_str() == model).unwrap();
    assert_eq!(failed.last_error.as_deref(), Some(reason));
    assert!(["inactive", "failed"].contains(&&*berth.property(&unit(model), "ActiveState")));
}

fn unit(model: &str) -> String {
    format!("berth-model@{model}.service")
}

/// Starts a change and gives it back once this step of it has begun.
#[track_caller]
fn begun(berth: &Berth, arguments: &[&str], step: Step) -> Child {
    let child = berth.ctl_spawn(None, arguments);
    berth.wait_for(&format!("{step:?} has begun"), Duration::from_secs(10), |berth| {
        let swap = berth.status().swap?;
        swap.steps.iter().any(|report| report.step == step).then_some(())
    });
    child
}

/// Waits for a change that [`begun`] started.
#[track_caller]
fn ended(berth: &Berth, child: Child, code: i32) -> Told {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let output = berth_tests::CtlOutput {
        code: output.status.code().unwrap(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    };
    let output = output.with_code(code);
    Told { output, swap: berth.swaps().into_iter().rfind(|swap| swap.verb != Verb::Restore).unwrap() }
}

/// S1 with memory that is really too small: out of memory at once, while it loads, and since somebody took it
/// meanwhile. Only the failed server's own allocations fail.
#[test]
fn a_start_that_runs_out_of_memory() {
    let berth = Berth::builder()
        .fake("aeon", "9000MiB", &[])
        .model("greedy", &takes(TOO_MUCH, ""))
        .model("later", &takes(TOO_MUCH, "--load-time 600ms"))
        .model("robbed", &takes(EACH, "--load-time 2s"))
        .boot();
    berth.switch("aeon");
    let said = ["it ran out of GPU memory: \"", "cudaMalloc failed: out of memory"];

    fails(&berth, "greedy", FailureClass::OutOfMemory, &said);
    fails(&berth, "later", FailureClass::OutOfMemory, &said);

    let child = begun(&berth, &["switch", "robbed"], Step::Ready);
    berth.gpu(&["foreign", "thief", "--device", "1", "--bytes", "3000MiB"]);
    let told = ended(&berth, child, 4);
    assert_fell_back(&berth, &told, "robbed", FailureClass::OutOfMemory, &said);

    let failed = berth.stats().failures;
    let aeon = berth.status().models.iter().find(|model| model.name.as_str() == "aeon").and_then(|m| m.pid);
    let pids: std::collections::BTreeSet<u32> = failed.iter().map(|failure| failure.pid).collect();
    assert_eq!((failed.len(), pids.len()), (3, 3), "one for each start: {failed:?}");
    assert!(aeon.is_some_and(|aeon| !pids.contains(&aeon)), "{failed:?}");
}

/// A server that exits at once, dies of a signal, can't read its model, or lacks a library: the reason is read from
/// its log, or else its exit tells.
#[test]
fn a_start_that_exits() {
    let magic = "gguf_init_from_file_impl: invalid magic characters: 'PK', expected 'GGUF'";
    let library =
        "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file";
    let exits = |text: &str, code: u8| takes("1MiB", &format!("--print \"{text}\" --exit-at-once {code}"));
    let berth = with_aeon()
        .model("quits", &takes("1MiB", "--exit-at-once 3"))
        .model("done", &takes("1MiB", "--exit-at-once 0"))
        .model("crashes", &takes("1MiB", "--load-time 5s --die-after 200ms --die-signal 11"))
        .model("garbled", &exits(magic, 1))
        .model("unlinked", &exits(library, 127))
        .model("chatty", &exits("nothing that anybody knows", 1))
        .boot();
    berth.switch("aeon");

    fails(&berth, "quits", FailureClass::Unclassified, &["it exited with status 3 without a known reason"]);
    fails(&berth, "done", FailureClass::Unclassified, &["it exited by itself, with status 0"]);
    fails(&berth, "crashes", FailureClass::Unclassified, &["it was ended by signal 11 (SIGSEGV"]);
    let told = fails(&berth, "garbled", FailureClass::BadModelFile, &["can't read the model's file", magic]);
    assert!(told.reason().ends_with(&format!("\"{magic}\"")), "{}", told.reason());
    fails(&berth, "unlinked", FailureClass::MissingLibrary, &["a shared library is missing", library]);
    fails(
        &berth,
        "chatty",
        FailureClass::Unclassified,
        &["it exited with status 1", "nothing that anybody knows"],
    );
    berth.assert_no_failed_allocation();

    // The same for programs.
    let change = berth.change(&["switch", "garbled"]).with_code(4);
    assert_eq!(change.last["exit"], 4, "{:#}", change.last);
    assert_eq!(change.last["swap"]["failure"]["class"], "bad_model_file", "{:#}", change.last);
    assert_eq!(change.last["swap"]["reason"].as_str(), Some(told.reason()));
    berth.assert_home("aeon");
}

/// S11: a server that never becomes ready, in every way: loads for ever, does not listen in time, does not answer its
/// health check, is healthy and hangs or fails when it is to generate. One that only listens late is waited for.
#[test]
fn a_start_that_is_never_ready() {
    let slow = |flags: &str| takes(EACH, flags) + SOON;
    let berth = with_aeon()
        .model("endless", &slow("--never-ready"))
        .model("unheard", &slow("--bind-late --load-time 60s"))
        .model("mute", &slow("--hang-health"))
        .model("dead", &slow("--no-generate"))
        .model("broken", &slow("--generate-error"))
        .model("tardy", &takes(EACH, "--bind-late --load-time 1500ms"))
        .boot();
    berth.switch("aeon");

    let unclassified = FailureClass::Unclassified;
    let told =
        fails(&berth, "endless", unclassified, &["it was not ready after ", "answers 503: Loading model"]);
    let ready = told.swap.steps.iter().find(|step| step.state == StepState::Failed).unwrap();
    assert!((2000..12_000).contains(&ready.elapsed_ms), "{ready:?}");
    fails(&berth, "unheard", unclassified, &["it was not ready after ", "nothing listens on its port"]);
    fails(
        &berth,
        "mute",
        unclassified,
        &["it was not ready after ", "its health check has not been answered"],
    );
    fails(
        &berth,
        "dead",
        unclassified,
        &["it was not ready after ", "has not answered a request for one token"],
    );
    fails(
        &berth,
        "broken",
        unclassified,
        &["it was not ready after ", "does not generate: ", "500: CUDA error: unspecified launch failure"],
    );

    berth.switch("tardy");
    berth.assert_home("tardy");
    berth.assert_no_failed_allocation();
}

/// Another process answers on the model's port: it took it after everything was checked, or the model listens
/// elsewhere. Nobody takes its answers for the model's.
#[test]
fn a_port_that_another_process_answers() {
    let at = |port: u16, flags: &str| takes(EACH, &format!("--port {port} {flags}"));
    let berth = with_aeon()
        .model("late", &at(8150, "--bind-late --load-time 1500ms"))
        .model("elsewhere", &(at(8151, "--bind-host 127.0.0.2") + SOON))
        .boot();
    berth.switch("aeon");
    berth.gpu(&["linger", "1s"]);
    let usurp = |port: &str| {
        let argv =
            ["systemd-run", "--quiet", "--collect", "--unit=usurper", "/usr/bin/fakellm", "--port", port];
        _ = berth.run(None, &argv).with_code(0);
        berth.wait_for("the usurper answers", Duration::from_secs(10), |berth| {
            berth.try_ask(port.parse::<u16>().unwrap(), "x").ok()
        });
    };
    let gone = || _ = berth.systemctl(&["stop", "usurper.service"]).with_code(0);

    let child = begun(&berth, &["switch", "late"], Step::Released);
    usurp("8150");
    let told = ended(&berth, child, 4);
    let bind =
        "its port was taken: \"start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8150\"";
    assert_fell_back(&berth, &told, "late", FailureClass::PortTaken, &[bind]);
    // Asked for again, it is refused before anything is stopped.
    let refused = berth.ctl(&["switch", "late"]).with_code(3).to_string();
    assert!(refused.contains("port 8150 is taken by usurper.service"), "{refused}");
    gone();

    let child = begun(&berth, &["switch", "elsewhere"], Step::Released);
    usurp("8151");
    let told = ended(&berth, child, 4);
    let words = ["it was not ready after ", "a foreign process answers on its port: ", "127.0.0.1:8151"];
    assert_fell_back(&berth, &told, "elsewhere", FailureClass::Unclassified, &words);
    gone();
    let words = ["it was not ready after ", "nothing listens on its port yet"];
    fails(&berth, "elsewhere", FailureClass::Unclassified, &words);
    berth.assert_no_failed_allocation();
}

/// The very first start fails: nothing served before, nothing serves now, and all memory is free.
#[test]
fn the_first_start_of_all() {
    let berth = Berth::builder().model("greedy", &takes(TOO_MUCH, "--load-time 300ms")).boot();
    let told = berth.told(4, &["switch", "greedy"]);
    assert!(
        told.reason().starts_with("greedy did not start: it ran out of GPU memory: "),
        "{}",
        told.reason()
    );
    let text = told.output.to_string();
    assert!(text.contains("Nothing served before, and nothing serves now."), "{text}");
    let status = berth.status();
    assert_eq!(
        (status.home.len(), status.default.clone(), status.problems.len()),
        (0, None, 0),
        "{status:?}"
    );
    assert_eq!(berth.state_of("greedy"), ModelState::Off);
    assert!(berth.stats().devices.iter().all(|device| device.memory.used == 0));
    // It stays so: nothing that was never committed is tried again.
    let invocation = berth.property(&unit("greedy"), "InvocationID");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(berth.property(&unit("greedy"), "InvocationID"), invocation);
    assert_eq!(berth.stats().failed, 1);
}

/// A model that dies while it serves comes back by itself, with a pause that grows when it dies again; who asks for
/// another model meanwhile gets that one.
#[test]
fn a_model_that_dies_while_it_serves() {
    let berth = with_aeon().fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let invocation = || berth.property(&unit("aeon"), "InvocationID");
    let crash = |signal: &str| {
        let before = invocation();
        _ = berth.run(None, &["systemctl", "kill", "--signal", signal, &unit("aeon")]).with_code(0);
        before
    };
    berth.gpu(&["linger", "1s"]);

    let before = crash("SIGABRT");
    berth.wait_for("aeon's end is seen", BY_ITSELF, |berth| {
        let problems = berth.status().problems;
        problems.into_iter().find(|problem| problem.code == "degraded" && problem.text.contains("SIGABRT"))
    });
    berth.wait_for("aeon is back", BY_ITSELF, |berth| {
        (berth.serving() == ["aeon"] && invocation() != before).then_some(())
    });
    berth.assert_home("aeon");
    berth.assert_no_failed_allocation();

    let before = crash("SIGKILL");
    berth.wait_for("aeon is back again", BY_ITSELF, |berth| {
        (berth.serving() == ["aeon"] && invocation() != before).then_some(())
    });
    berth.assert_home("aeon");

    crash("SIGKILL");
    berth.wait_for("aeon's end is seen", BY_ITSELF, |berth| berth.serving().is_empty().then_some(()));
    berth.wait_for("its memory is free", BY_ITSELF, |berth| {
        let free = berth.status().problems.iter().all(|problem| problem.code != "memory_held");
        free.then_some(())
    });
    berth.switch("genesis");
    berth.assert_home("genesis");
    berth.assert_no_failed_allocation();
}

/// The victim crashes by itself while it is being stopped, and just before the switch is asked for: its end is its
/// end, and its memory is waited for as ever.
#[test]
fn a_victim_that_crashes() {
    let aeon = berth_tests::fake(2, EACH, &["--slow-stop", "20s"]) + "deadlines = { stop = \"15s\" }\n";
    let berth = Berth::builder().model("aeon", &aeon).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    berth.gpu(&["linger", "700ms"]);

    let child = begun(&berth, &["switch", "genesis"], Step::Stopped);
    let kill = ["systemctl", "kill", "--signal", "SIGABRT", "berth-model@aeon.service"];
    _ = berth.run(None, &kill).with_code(0);
    let told = ended(&berth, child, 0);
    assert!(told.swap.early_start_would_fail, "{:?}", told.swap);
    let stopped = told.swap.steps.iter().find(|step| step.step == Step::Stopped).unwrap();
    assert!(stopped.elapsed_ms < 14_000, "it waited for a victim that was dead: {stopped:?}");
    berth.assert_home("genesis");

    berth.switch("aeon");
    berth.gpu(&["linger", "1500ms"]);
    let script = "systemctl kill --signal SIGKILL berth-model@aeon.service; berthctl switch genesis";
    let output = berth.run(None, &["sh", "-c", script]);
    // Refused (its memory is not back yet) or done, but never a server on memory that is still held.
    match output.code {
        0 => berth.assert_home("genesis"),
        3 => {
            let why = "genesis fits as soon as the memory of aeon is back";
            assert!(output.to_string().contains(why), "{output}");
            berth.wait_serving("aeon", BY_ITSELF);
            berth.assert_home("aeon");
        }
        _ => panic!("{output}"),
    }
    berth.assert_no_failed_allocation();
}
