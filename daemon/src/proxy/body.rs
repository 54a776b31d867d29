//! Bodies on their way: a request's to a model's server, and an answer's back. Neither is kept.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use berth_core::config::Changes;
use berth_core::proxy::Refused;
use berth_core::proxy::finder::{Finder, Form, Found, Wrong, edited, spelled};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::comments::Commented;
use super::telemetry::{Account, Taken};
use super::traffic::Counted;

/// A time that begins anew with each frame.
struct Pause {
    longest: Duration,
    over: Option<Pin<Box<Sleep>>>,
}

impl Pause {
    fn new(longest: Duration) -> Self {
        Self { longest, over: None }
    }

    /// Something came: the next pause begins.
    fn ends(&mut self) {
        if let Some(over) = &mut self.over {
            over.as_mut().reset(Instant::now() + self.longest);
        }
    }

    /// Nothing came; ready once that has been so for too long.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let longest = self.longest;
        self.over.get_or_insert_with(|| Box::pin(sleep(longest))).as_mut().poll(context)
    }
}

/// A request's body: what was read of it to find its model, then the rest as it comes in.
pub(super) struct Sent {
    head: VecDeque<Bytes>,
    rest: Option<Incoming>,
    finder: Option<Finder>,
    /// Another name was written in the place of the one that was found.
    renamed: bool,
    taken: Taken,
    most: u64,
    pause: Pause,
    fault: Fault,
}

/// Why a body could not be sent on, where it could not.
pub(super) type Fault = Arc<OnceLock<Refused>>;

impl Sent {
    /// A body whose model is known without it.
    pub(super) fn unread(body: Incoming, most: u64, pause: Duration) -> Self {
        Self {
            head: VecDeque::new(),
            rest: Some(body),
            finder: None,
            renamed: false,
            taken: Taken::default(),
            most,
            pause: Pause::new(pause),
            fault: Fault::default(),
        }
    }

    /// Reads as much of a body as it takes to find its model.
    pub(super) async fn read(
        body: Incoming,
        finder: Finder,
        most: u64,
        pause: Duration,
    ) -> Result<Self, Refused> {
        let mut sent = Self { finder: Some(finder), ..Self::unread(body, most, pause) };
        while sent.found().is_none() && sent.more().await? {}
        Ok(sent)
    }

    /// Reads the next of it; false at its end.
    async fn more(&mut self) -> Result<bool, Refused> {
        let Some(body) = &mut self.rest else { return Ok(false) };
        let longest = self.pause.longest;
        match timeout(longest, body.frame()).await.map_err(|_| slow(longest))? {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    self.look(&bytes)?;
                    self.head.push_back(bytes);
                }
                Ok(true)
            }
            Some(Err(error)) => Err(broken(&error)),
            None => {
                self.rest = None;
                self.finder.as_mut().map_or(Ok(()), Finder::end).map_err(|why| wrong(&why))?;
                Ok(false)
            }
        }
    }

    /// Changes fields of a JSON body, which takes all of it. How much longer it becomes, in bytes.
    pub(super) async fn change(&mut self, changes: &Changes) -> Result<i64, Refused> {
        if self.finder.as_ref().is_none_or(|finder| finder.form() != Form::Json) {
            return Ok(0);
        }
        while self.more().await? {}
        let whole: Vec<u8> = self.head.iter().flat_map(|bytes| bytes.iter().copied()).collect();
        let changed =
            edited(&whole, &changes.set, &changes.default, &changes.strip).map_err(|why| wrong(&why))?;
        let longer = i64::try_from(changed.len()).unwrap_or(0) - i64::try_from(whole.len()).unwrap_or(0);
        self.head = VecDeque::from([Bytes::from(changed)]);
        Ok(longer)
    }

    /// The model that was found.
    pub(super) fn found(&self) -> Option<&Found> {
        self.finder.as_ref()?.found()
    }

    /// Writes another name in its place. How much longer the body becomes, in bytes.
    pub(super) fn rename(&mut self, name: &str) -> Result<i64, Refused> {
        let Some((form, found)) =
            self.finder.as_ref().and_then(|finder| Some((finder.form(), finder.found()?)))
        else {
            return Ok(0);
        };
        if found.again {
            return Err(twice());
        }
        let other = spelled(form, name);
        // It was found in what was read.
        let whole: Vec<u8> = self.head.iter().flat_map(|bytes| bytes.iter().copied()).collect();
        let place = |at: u64| usize::try_from(at).ok().filter(|at| *at <= whole.len());
        let (Some(start), Some(end)) = (place(found.at.start), place(found.at.end)) else { return Ok(0) };
        let longer = i64::try_from(other.len()).unwrap_or(0) - i64::try_from(end - start).unwrap_or(0);
        self.head = VecDeque::from([Bytes::from([&whole[..start], &other, &whole[end..]].concat())]);
        self.renamed = true;
        Ok(longer)
    }

    /// Where it is told why this body could not be sent on.
    pub(super) fn fault(&self) -> Fault {
        Arc::clone(&self.fault)
    }

    /// How much of it came in.
    pub(super) fn taken(&self) -> Taken {
        Arc::clone(&self.taken)
    }

    fn take(&mut self, bytes: usize) -> Result<(), Refused> {
        let bytes = bytes as u64;
        let taken = self.taken.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if taken > self.most { Err(too_large(self.most)) } else { Ok(()) }
    }

    /// What has come in may go on, as far as can be seen.
    fn look(&mut self, bytes: &Bytes) -> Result<(), Refused> {
        self.take(bytes.len())?;
        let Some(finder) = &mut self.finder else { return Ok(()) };
        finder.push(bytes).map_err(|why| wrong(&why))?;
        let again = self.renamed && finder.found().is_some_and(|found| found.again);
        if again { Err(twice()) } else { Ok(()) }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(bytes) = self.head.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let sent = &mut *self;
        let Some(rest) = &mut sent.rest else { return Poll::Ready(None) };
        let refused = match Pin::new(rest).poll_frame(context) {
            Poll::Pending => {
                ready!(sent.pause.poll(context));
                slow(sent.pause.longest)
            }
            Poll::Ready(None) => {
                sent.rest = None;
                match sent.finder.as_mut().map_or(Ok(()), Finder::end) {
                    Ok(()) => return Poll::Ready(None),
                    Err(why) => wrong(&why),
                }
            }
            Poll::Ready(Some(Err(error))) => broken(&error),
            Poll::Ready(Some(Ok(frame))) => {
                sent.pause.ends();
                let looked = frame.data_ref().map_or(Ok(()), |bytes| sent.look(bytes));
                match looked {
                    Ok(()) => return Poll::Ready(Some(Ok(frame))),
                    Err(refused) => refused,
                }
            }
        };
        sent.rest = None;
        let text = refused.text.clone();
        _ = sent.fault.set(refused);
        Poll::Ready(Some(Err(io::Error::other(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let head: u64 = self.head.iter().map(|bytes| bytes.len() as u64).sum();
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(head));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(head));
        }
        hint
    }
}

/// An answer's body.
pub(super) enum Answer {
    /// The proxy's own.
    Own(Full<Bytes>),
    /// A model's, which counts as under way until its end.
    Model {
        /// As it comes in.
        body: Incoming,
        /// How long it may pause.
        pause: Box<PausedAnswer>,
    },
    /// One that begins with comments.
    Commented(Box<Commented>),
}

/// What goes with a model's answer.
pub(super) struct PausedAnswer {
    pause: Pause,
    /// Told of before it no longer counts.
    account: Option<Account>,
    counted: Counted,
}

impl PausedAnswer {
    fn seen(&mut self, what: impl FnOnce(&mut Account)) {
        if let Some(account) = &mut self.account {
            what(account);
        }
    }
}

impl Answer {
    pub(super) fn model(body: Incoming, counted: Counted, pause: Duration) -> Self {
        let pause = PausedAnswer { pause: Pause::new(pause), account: None, counted };
        Self::Model { body, pause: Box::new(pause) }
    }

    /// Lets it be seen as it passes.
    pub(super) fn follow(&mut self, mut account: Account) {
        if self.is_end_stream() {
            account.ends();
        }
        match self {
            Self::Own(body) => {
                account.sends(body.size_hint().lower());
                account.ends();
            }
            Self::Model { pause, .. } => pause.account = Some(account),
            // What it comes to is followed itself.
            Self::Commented(_) => {}
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Commented(body) => body.poll(context),
            Self::Model { body, pause } => match Pin::new(&mut *body).poll_frame(context) {
                Poll::Pending => {
                    ready!(pause.pause.poll(context));
                    tracing::debug!(model = %pause.counted.model(), "its answer paused for too long");
                    pause.seen(|account| account.breaks("answer_paused"));
                    Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
                }
                Poll::Ready(frame) => {
                    pause.pause.ends();
                    pause.seen(|account| match &frame {
                        Some(Ok(frame)) => {
                            frame.data_ref().into_iter().for_each(|bytes| account.passes(bytes));
                            // Nobody asks on for an end that is known.
                            if body.is_end_stream() {
                                account.ends();
                            }
                        }
                        Some(Err(_)) => account.breaks("answer_cut"),
                        None => account.ends(),
                    });
                    Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Model { body, .. } => body.is_end_stream(),
            Self::Commented(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Model { body, .. } => body.size_hint(),
            Self::Commented(_) => SizeHint::default(),
        }
    }
}

/// A body that is longer than allowed.
pub(super) fn too_large(most: u64) -> Refused {
    let text = format!(
        "the body is longer than {}; `body` in [proxy] of berth.toml allows more",
        berth_core::bytes::Bytes(most)
    );
    Refused { status: 413, code: "body_too_large", text, retry_after: None }
}

fn twice() -> Refused {
    let text = "`model` stands twice in the body; ask for one model, once".to_owned();
    Refused { status: 400, code: "bad_body", text, retry_after: None }
}

fn wrong(why: &Wrong) -> Refused {
    Refused { status: 400, code: "bad_body", text: why.to_string(), retry_after: None }
}

fn slow(pause: Duration) -> Refused {
    let text = format!("nothing more of the body came for {} s", pause.as_secs());
    Refused { status: 408, code: "body_too_slow", text, retry_after: None }
}

fn broken(error: &hyper::Error) -> Refused {
    Refused {
        status: 400,
        code: "bad_body",
        text: format!("the body can't be read: {error}"),
        retry_after: None,
    }
}
