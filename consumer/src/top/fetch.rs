//! Queries the source repeatedly, apart from drawing: one query at a time, at most one answer buffered.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::answer::{Answer, Question};
use super::source::Source;

/// Time limit of an answer.
const ANSWER: Duration = Duration::from_secs(15);

/// Queries until the receiver is dropped.
pub(super) async fn fetch(
    mut source: Source,
    mut questions: watch::Receiver<Question>,
    answers: mpsc::Sender<Result<Answer, String>>,
    interval: Duration,
) {
    loop {
        let question = questions.borrow_and_update().clone();
        let answer = timeout(ANSWER, source.answer(&question)).await;
        let answer = answer.unwrap_or_else(|_| {
            source.give_up();
            Err(format!("no answer within {} s", ANSWER.as_secs()))
        });
        let is_answered = answer.is_ok();
        if answers.send(answer).await.is_err() {
            return;
        }
        let again = async {
            match question.sort.is_none() && is_answered {
                true => std::future::pending().await,
                false => sleep(interval).await,
            }
        };
        tokio::select! {
            changed = questions.changed() => if changed.is_err() {
                return;
            },
            () = again => {}
            () = answers.closed() => return,
        }
    }
}
