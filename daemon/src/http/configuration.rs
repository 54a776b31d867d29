//! What is declared anew: checked, and taken up.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_core::config::{self, Settings};
use berth_core::report::{Refusal, Reloaded, SCHEMA};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::audit::Audit;
use super::caller::By;
use super::openapi::Problems;
use super::{Api, no_answer, problem};
use crate::driver::Message;
use crate::preflight::LOOK_UP;
use crate::scope::Scope;

/// What would come of a reload; touches nothing. Needs `plan`.
#[utoipa::path(post, path = "/api/v1/check", tag = "node", responses((status = 200, body = Reloaded), Problems))]
pub(super) async fn check(State(api): State<Api>) -> Response {
    match api.look().await {
        Ok(settings) => {
            let changes = config::difference(&api.declared.now(), &settings);
            Json(Reloaded { schema: SCHEMA, changes, warnings: warnings(&settings) }).into_response()
        }
        Err(refusal) => refused(&refusal),
    }
}

/// Takes up what is declared now. Nothing that runs is touched. Needs `operate`.
#[utoipa::path(post, path = "/api/v1/reload", tag = "node", responses((status = 200, body = Reloaded), Problems))]
pub(super) async fn reload(State(api): State<Api>, by: By) -> Response {
    // In a task of its own: the asker may vanish, what was asked for and who asked may not.
    let reloading = tokio::spawn(async move {
        let audit = Audit::new(by, "reload", String::new());
        match api.reload().await {
            Ok(reloaded) => {
                audit.write(&format!("{} changed", reloaded.changes.len()));
                Json(reloaded).into_response()
            }
            Err(refusal) => {
                audit.write(&format!("refused: {}", refusal.text));
                refused(&refusal)
            }
        }
    });
    reloading.await.unwrap_or_else(|_| no_answer())
}

impl Api {
    /// Takes up what is declared now, whole or not at all.
    pub async fn reload(&self) -> Result<Reloaded, Refusal> {
        let settings = self.look().await?;
        let warnings = warnings(&settings);
        // What is new is looked at before anybody asks for it.
        let files = self.looker.files.look(settings.models.values().cloned().collect()).await;
        let (reply, answer) = oneshot::channel();
        let silent = || Refusal {
            code: "no_answer".to_owned(),
            text: "berthd's driver does not answer".to_owned(),
            hints: vec![format!("{} -u berthd -n 50", Scope::this().journalctl())],
        };
        self.driver.send(Message::Files(files)).await.map_err(|_| silent())?;
        let changes =
            self.ask(Message::Reload(Box::new(settings), reply), answer).await.ok_or_else(silent)??;
        Ok(Reloaded { schema: SCHEMA, changes, warnings })
    }

    /// What is declared by now.
    async fn look(&self) -> Result<Settings, Refusal> {
        let declared = self.declared.clone();
        let looked = timeout(LOOK_UP, spawn_blocking(move || declared.look())).await;
        let why = match looked {
            Ok(Ok(Ok(settings))) => return Ok(settings),
            Ok(Ok(Err(error))) => error.to_string(),
            _ => format!("its file system did not answer within {} s", LOOK_UP.as_secs()),
        };
        let hints = vec!["berthctl check".to_owned()];
        Err(Refusal { code: "bad_configuration".to_owned(), text: why, hints })
    }
}

fn warnings(settings: &Settings) -> Vec<String> {
    settings.warnings.iter().map(|warning| warning.render(false)).collect()
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal.code.as_str() {
        "bad_configuration" => StatusCode::UNPROCESSABLE_ENTITY,
        "no_answer" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    };
    problem(status, &refusal.code, &refusal.text, &refusal.hints)
}
