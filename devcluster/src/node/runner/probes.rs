//! A running container's probes.

use super::Runner;
use super::command::{Plan, Probe};
use crate::node::events::Severity;
use crate::node::probe::{Answers, EAGER_FOR, EAGER_PERIOD};
use crate::node::process::Process;
use std::time::Duration;
use tokio::time::Instant;

/// A probe has found the container unfit: it is to be ended, and restarted as the policy says.
pub struct Unfit {
    pub probe: &'static str,
    pub grace: Option<Duration>,
}

impl Runner {
    /// Startup first, then liveness and readiness side by side; returns only when the container must be ended.
    pub(super) async fn probe(&self, process: &Process, plan: &Plan) -> Unfit {
        if let Some(startup) = &plan.startup {
            let mut asked = Asked::new("Startup", false);
            if !asked.verdict(self, process, startup).await {
                return Unfit { probe: "startup", grace: startup.grace };
            }
            self.pod.update_record(self.slot, |record| {
                record.started = true;
                record.ready = plan.readiness.is_none();
            });
        }
        let readiness = async {
            if let Some(readiness) = &plan.readiness {
                let mut asked = Asked::new("Readiness", true);
                loop {
                    let ready = asked.verdict(self, process, readiness).await;
                    self.pod.update_record(self.slot, |record| record.ready = ready);
                }
            }
            std::future::pending().await
        };
        let liveness = async {
            if let Some(liveness) = &plan.liveness {
                let mut asked = Asked::new("Liveness", false);
                while asked.verdict(self, process, liveness).await {}
                return Unfit { probe: "liveness", grace: liveness.grace };
            }
            std::future::pending().await
        };
        tokio::select! {
            unfit = liveness => unfit,
            unfit = readiness => unfit,
        }
    }
}

/// A probe in the course of its questions.
struct Asked {
    name: &'static str,
    answers: Answers,
    began: Option<Instant>,
    eager: bool,
}

impl Asked {
    fn new(name: &'static str, eager: bool) -> Self {
        Self { name, answers: Answers::default(), began: None, eager }
    }

    /// Asks until enough answers in a row agree. A period lies between two questions, also across calls.
    async fn verdict(&mut self, runner: &Runner, process: &Process, probe: &Probe) -> bool {
        loop {
            match self.began {
                None => tokio::time::sleep(probe.timing.initial_delay).await,
                Some(_) => tokio::time::sleep(probe.timing.period).await,
            }
            let began = *self.began.get_or_insert_with(Instant::now);
            let mut answer = self.ask(runner, process, probe).await;
            while self.eager
                && answer.is_err()
                && began.elapsed() < EAGER_FOR.min(probe.timing.period)
            {
                tokio::time::sleep(EAGER_PERIOD).await;
                answer = self.ask(runner, process, probe).await;
            }
            self.eager = false;
            if let Err(why) = &answer {
                runner.report(
                    Severity::Warning,
                    "Unhealthy",
                    format!("{} probe failed: {why}", self.name),
                );
            }
            if let Some(verdict) = self.answers.observe(answer.is_ok(), &probe.timing) {
                return verdict;
            }
        }
    }

    async fn ask(&self, runner: &Runner, process: &Process, probe: &Probe) -> Result<(), String> {
        probe.action.run(process, &runner.ctx.http, Some(probe.timing.timeout)).await
    }
}
