//! How long a model's answer may take, and which of its headers go on.

use super::*;
use telemetry::came;

#[test]
fn a_model_may_have_deadlines_of_its_own() {
    let declared = "cmd = \"python3 /etc/berth/slow_server.py\"\nbackend = \"command\"\nmemory = { gpu = \"1 GiB\" }\n\
                    health = { every = \"off\" }\n";
    let hasty = "deadlines = { connect = \"1s\", first_byte = \"2s\", idle = \"2s\" }\n";
    let berth = Berth::builder()
        .main("[proxy]\nfirst_byte = \"20s\"\n")
        .model("hasty", &(declared.to_owned() + hasty))
        .model("patient", declared)
        .boot();
    berth.configure("slow_server.py", include_bytes!("../../../clients/slow_server.py"));
    berth.switch("hasty");
    assert_eq!(berth.change(&["start", "patient"]).with_code(0).swap().outcome, Some(Outcome::Done));
    let pid1 = berth.pid1().unwrap();
    let ask = move |path: &str| {
        let request = format!("GET /upstream/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        say(pid1, PROXY_PORT, request.as_bytes(), SOON).unwrap()
    };
    for path in ["patient/late", "patient/pauses", "hasty/soon"] {
        let answer = ask(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, "half"), "{path}: {answer:?}");
        // No page was declared, so that none is let in by the server.
        assert!(!answer.head.to_ascii_lowercase().contains("access-control"), "{answer:?}");
    }
    let began = Instant::now();
    assert_eq!(ask("hasty/pauses").body, "ha");
    assert!((2..4).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    came(&berth, "hasty", "answer_paused", 1);
    thread::sleep(Duration::from_secs(3));

    // It is busy with one and has one waiting; the next finds no room.
    let waiting: Vec<_> = ["hasty/late", "hasty/soon"]
        .into_iter()
        .map(|path| {
            let asked = thread::spawn(move || ask(path));
            thread::sleep(Duration::from_millis(300));
            asked
        })
        .collect();
    let (status, code, text) = error(&ask("hasty/soon"));
    assert_eq!((status, code.as_str()), (502, "backend_failed"));
    assert!(text.starts_with("hasty serves and takes no connection at 127.0.0.1:"), "{text}");
    for asked in waiting {
        let (status, code, text) = error(&asked.join().unwrap());
        assert_eq!((status, code.as_str()), (504, "backend_timeout"));
        assert_eq!(text, "hasty did not begin to answer within 2 s");
    }
}
