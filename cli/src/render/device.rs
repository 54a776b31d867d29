//! What `device clear` did.

use berth_core::report::Cleared;

use super::text::{clean, gib, paragraph};

/// What was cleared, what was given up and what was not.
pub(crate) fn cleared(cleared: &Cleared) -> String {
    let gpu = format!("GPU {}", cleared.index);
    let mut out = match (&cleared.suspect, &cleared.unusable) {
        (Some(was), None) => paragraph("", &format!("{gpu} is used again. It was suspect: {}.", clean(was))),
        (Some(was), Some(_)) => paragraph("", &format!("{gpu} was suspect: {}.", clean(was))),
        (None, _) => paragraph("", &format!("{gpu} was not suspect.")),
    };
    if let Some(why) = &cleared.unusable {
        out.push_str(&paragraph("", &format!("Nothing is placed there all the same: {}.", clean(why))));
    }
    for part in &cleared.given_up {
        let text = format!(
            "Given up: {} GiB of {}'s memory, which nobody is listed for. It counts as foreign use.",
            gib(part.bytes),
            part.model
        );
        out.push_str(&paragraph("", &text));
    }
    for kept in &cleared.kept {
        out.push_str(&paragraph("", &format!("Still awaited: {}.", clean(kept))));
    }
    out
}

#[cfg(test)]
mod tests {
    use berth_core::bytes::Bytes;
    use berth_core::report::GivenUp;

    use super::*;
    use crate::render::examples::name;

    #[test]
    fn what_was_cleared_and_what_was_given_up() {
        let plain = Cleared {
            schema: 1,
            index: 1,
            id: "GPU-5060-1".into(),
            suspect: None,
            unusable: None,
            given_up: Vec::new(),
            kept: Vec::new(),
        };
        let suspect =
            Cleared { suspect: Some("the driver reported Xid 79; see `dmesg`".into()), ..plain.clone() };
        let lost = Cleared { unusable: Some("GPU is lost".into()), ..suspect.clone() };
        let given_up = Cleared {
            given_up: vec![GivenUp { model: name("aeon"), bytes: Bytes::mib(3174) }],
            kept: vec![
                "GPU 1: 1.0 GiB of glm's memory are still held: pid 5120 (VLLM::Worker) holds 1.0 GiB".into(),
            ],
            ..plain.clone()
        };
        let all = [plain, suspect, lost, given_up].map(|one| cleared(&one));
        insta::assert_snapshot!(all.join("\n"));
    }
}
