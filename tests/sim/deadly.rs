//! Handlers that die: the real gateway, with a plan of whose pushes it dies over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ringcast::apns::Apns;
use ringcast::domain::policy::PushError;
use ringcast::domain::response::Response;
use ringcast::worker::gateway::{Gateway, Push};
use serde_json::Value;
use tokio::time::timeout;

use crate::broker::{Broker, Happening};

/// When a handler dies.
#[derive(Clone, Copy, Debug)]
pub enum Dying {
    /// Before anything is written.
    Before,
    /// A while after, with or without an answer.
    Meanwhile(Duration),
    /// Once all is known.
    After,
}

/// Handlers of a call die so often, wherever they are.
#[derive(Clone, Debug)]
pub struct Deadliness {
    pub call: String,
    pub times: u32,
    pub dying: Dying,
}

/// Deaths to come, by call; clones share them.
#[derive(Clone)]
pub struct Deaths(Arc<Mutex<BTreeMap<String, Deadliness>>>);

impl Deaths {
    pub fn new(planned: &[Deadliness]) -> Self {
        let planned = planned.iter().map(|deadliness| (deadliness.call.clone(), deadliness.clone()));
        Self(Arc::new(Mutex::new(planned.collect())))
    }

    /// How this push ends, if it is deadly.
    fn of(&self, push: &Push) -> Option<Deadliness> {
        let mut deaths = self.0.lock();
        if deaths.is_empty() {
            return None;
        }
        let body: Value = serde_json::from_slice(&push.body).expect("pushes are JSON");
        let deadliness = deaths.get_mut(body["callUUID"].as_str().expect("pushes name their call"))?;
        deadliness.times = deadliness.times.checked_sub(1)?;
        Some(deadliness.clone())
    }
}

/// The gateway of one worker.
pub struct Deadly {
    pub apns: Apns,
    pub worker: u64,
    pub broker: Broker,
    pub deaths: Deaths,
}

impl Gateway for Deadly {
    async fn push(&self, push: &Push) -> Result<Response, PushError> {
        let Some(Deadliness { call, dying, .. }) = self.deaths.of(push) else {
            return self.apns.push(push).await;
        };
        match dying {
            Dying::Before => {}
            Dying::Meanwhile(time) => drop(timeout(time, self.apns.push(push)).await),
            Dying::After => drop(self.apns.push(push).await),
        }
        let worker = self.worker;
        self.broker.note(|at| Happening::Died { at, worker, call: call.clone() });
        // A panic that says nothing: there are thousands.
        std::panic::resume_unwind(Box::new("a handler dies, on purpose"));
    }
}
