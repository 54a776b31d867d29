//! From a model's file or folder to the shortest declaration: a server that is found on this machine, and the path.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::draft::Draft;
use super::from_unit::Refusal;
use super::sound_name;

/// Where a server is looked for that berth-launch would find without a path, and where people put it.
const FOLDERS: [&str; 6] = [
    "/usr/local/bin",
    "/usr/bin",
    "/opt/llama.cpp/build/bin",
    "/opt/llama.cpp",
    "/opt/vllm/bin",
    "/opt/vllm/.venv/bin",
];

/// Reads a GGUF file, or a folder with config.json.
pub(super) fn read(path: &Path, name: Option<&str>) -> Result<Draft, Refusal> {
    let shown = path.display();
    let whole = path
        .canonicalize()
        .map_err(|error| Refusal::new(format!("{shown} can't be read: {error}"), format!("ls -l {shown}")))?;
    let gguf = whole.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf"));
    let server = if gguf && whole.is_file() {
        "llama-server"
    } else if whole.join("config.json").is_file() {
        "vllm"
    } else {
        let what = "it is neither a GGUF file nor a folder with config.json";
        return Err(Refusal::new(what, format!("berthctl fit {shown} lists the models in a folder")));
    };
    let text =
        whole.to_str().ok_or_else(|| Refusal::new("its path is not UTF-8 text", "rename it"))?.to_owned();
    let stem = if gguf { whole.file_stem() } else { whole.file_name() };
    let otherwise = sound_name(&stem.unwrap_or_default().to_string_lossy());
    let name =
        super::named(name, &otherwise).map_err(|complaint| Refusal::new(complaint.title, "--name NAME"))?;
    let program = program(server);
    let found = program.is_some();
    let program = program.map_or_else(|| server.to_owned(), |path| path.to_string_lossy().into_owned());
    let argv =
        if gguf { vec![program, "-m".to_owned(), text] } else { vec![program, "serve".to_owned(), text] };
    let mut draft = Draft::new(name, shown.to_string(), argv);
    if !found {
        let places = FOLDERS.join(", ");
        draft.note(server, format!("not found in {places}: write its whole path into `cmd`"));
    }
    if let Ok(metadata) = whole.metadata()
        && metadata.permissions().mode() & 0o004 == 0
    {
        let why = "not everybody may read it, and models run as user berth-model: `--run-as` names who may";
        draft.note(shown.to_string(), why);
    }
    Ok(draft)
}

/// The server's program, where it is installed.
fn program(name: &str) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(executable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn a_file_and_a_folder_are_a_line_each_and_all_else_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("gemma 4.Q4.gguf"), "").unwrap();
        fs::create_dir_all(path("qwen3/empty")).unwrap();
        fs::write(path("qwen3/config.json"), "{}").unwrap();
        let draft = read(&path("gemma 4.Q4.gguf"), None).unwrap();
        assert_eq!(draft.name.as_str(), "gemma-4.Q4");
        assert_eq!(draft.argv[1..], ["-m".to_owned(), path("gemma 4.Q4.gguf").to_str().unwrap().to_owned()]);
        assert!(draft.argv[0].ends_with("llama-server"));
        let draft = read(&path("qwen3"), Some("q")).unwrap();
        assert_eq!(draft.name.as_str(), "q");
        assert_eq!(draft.argv[1..], ["serve".to_owned(), path("qwen3").to_str().unwrap().to_owned()]);
        assert!(read(&path("qwen3/empty"), None).unwrap_err().what.contains("neither a GGUF file"));
        assert!(read(&path("nowhere"), None).unwrap_err().what.contains("can't be read"));
        fs::set_permissions(path("qwen3"), fs::Permissions::from_mode(0o750)).unwrap();
        let draft = read(&path("qwen3"), None).unwrap();
        assert!(draft.notes.iter().any(|note| note.why.contains("berth-model")), "{:?}", draft.notes);
    }
}
