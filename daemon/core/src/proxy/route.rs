//! Paths that clients ask for.

/// Whose errors a client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's, which nearly all speak.
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

/// What a path is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// The models that may be asked for.
    Models,
    /// One of them.
    Model(&'a str),
    /// A model's server is to answer, under the same path; which one the body says, or where there is none the query.
    Ask(Dialect),
    /// A model's server is to answer: which, and under which path.
    Upstream(&'a str, &'a str),
    /// Nothing.
    Unknown,
}

impl Route<'_> {
    /// Whose errors who asks for it understands.
    pub fn dialect(&self) -> Dialect {
        if let Self::Ask(dialect) = self { *dialect } else { Dialect::OpenAi }
    }
}

const PATHS: &[(&str, Dialect)] = &[
    ("/v1/chat/completions", Dialect::OpenAi),
    ("/v1/completions", Dialect::OpenAi),
    ("/v1/responses", Dialect::OpenAi),
    ("/v1/embeddings", Dialect::OpenAi),
    ("/v1/rerank", Dialect::OpenAi),
    ("/rerank", Dialect::OpenAi),
    ("/reranking", Dialect::OpenAi),
    ("/v1/audio/transcriptions", Dialect::OpenAi),
    ("/v1/audio/translations", Dialect::OpenAi),
    ("/v1/audio/speech", Dialect::OpenAi),
    ("/v1/images/generations", Dialect::OpenAi),
    ("/v1/images/edits", Dialect::OpenAi),
    ("/v1/messages", Dialect::Anthropic),
    ("/v1/messages/count_tokens", Dialect::Anthropic),
    ("/completion", Dialect::OpenAi),
    ("/infill", Dialect::OpenAi),
    ("/props", Dialect::OpenAi),
    ("/tokenize", Dialect::OpenAi),
    ("/detokenize", Dialect::OpenAi),
    ("/apply-template", Dialect::OpenAi),
];

/// What this path, without its query, is for. A `/` at its end makes no difference.
pub fn route(path: &str) -> Route<'_> {
    if let Some(rest) = path.strip_prefix("/upstream/") {
        let (model, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        return if model.is_empty() { Route::Unknown } else { Route::Upstream(model, rest) };
    }
    let path = path.strip_suffix('/').unwrap_or(path);
    if let Some((_, dialect)) = PATHS.iter().find(|(known, _)| *known == path) {
        return Route::Ask(*dialect);
    }
    match path.strip_prefix("/v1/models") {
        Some("") => Route::Models,
        Some(rest) => rest.strip_prefix('/').map_or(Route::Unknown, Route::Model),
        None => Route::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_what_they_are_for() {
        let json = Route::Ask(Dialect::OpenAi);
        for (path, wanted) in [
            ("/v1/chat/completions", json.clone()),
            ("/v1/chat/completions/", json),
            ("/v1/audio/transcriptions", Route::Ask(Dialect::OpenAi)),
            ("/v1/messages/count_tokens", Route::Ask(Dialect::Anthropic)),
            ("/v1/models", Route::Models),
            ("/v1/models/", Route::Models),
            ("/v1/models/gemma:long", Route::Model("gemma:long")),
            ("/v1/models/org/name", Route::Model("org/name")),
            ("/v1/modelsx", Route::Unknown),
            ("/upstream/gemma", Route::Upstream("gemma", "")),
            ("/upstream/gemma/", Route::Upstream("gemma", "/")),
            ("/upstream/gemma/a/b/", Route::Upstream("gemma", "/a/b/")),
            ("/upstream//a", Route::Unknown),
            ("/upstream/", Route::Unknown),
            ("/", Route::Unknown),
            ("", Route::Unknown),
            ("/v1/chat", Route::Unknown),
            ("/V1/models", Route::Unknown),
        ] {
            assert_eq!(route(path), wanted, "{path}");
        }
    }
}
