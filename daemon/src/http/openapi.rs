//! The control API described for programs: OpenAPI 3.1, made from the handlers and from core's report.

use std::collections::BTreeMap;

use berth_core::report::ApiProblem;
use utoipa::openapi::response::Response as Described;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi as _, ToSchema};

/// What any request may come to instead: RFC 9457's problems.
pub(super) struct Problems;

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        let one = |code: &str, what: &str| {
            let content =
                ContentBuilder::new().schema(Some(Ref::from_schema_name(ApiProblem::name()))).build();
            let response =
                ResponseBuilder::new().description(what).content("application/problem+json", content);
            (code.to_owned(), response.build().into())
        };
        BTreeMap::from([one("4XX", "It is refused, and why"), one("5XX", "berthd can't answer, and why")])
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Berth's control API",
        description = "Over the unix socket /run/berth/berth.sock, and over TCP, by default at 127.0.0.1:8009. Moments are \
                       milliseconds since 1970, durations milliseconds, memory bytes. Fields may be added; none changes \
                       its meaning within a schema."
    ),
    components(schemas(ApiProblem)),
    modifiers(&Tokens),
    security((), ("token" = []))
)]
struct Document;

struct Tokens;

impl Modify for Tokens {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// What is said of it as a whole.
pub(super) fn head() -> OpenApi {
    Document::openapi()
}
