//! How one noticed node is emptied: by its agent, which may die and come back at any moment, or by the operator in its
//! stead.
//!
//! What is decided, asked of pods and written on the Node is the programs' own code (`agent`, `operator`, `drain`).
//! What lies between is written down there, after the files that are named.
//!
//! Time goes in steps from one moment at which something may be due to the next. In between, whatever can happen may
//! happen in any order; it goes on once no program that runs has anything left to do, or a fault lets it be slow.

use spotpool_crds::eviction::{Claimant, Phase};
use spotpool_crds::names;
use spotpool_drain::edit::Edit;
use stateright::{Model, Property};

mod agent;
mod cluster;
mod drain;
mod operator;
pub mod state;

use crate::time::Time;
use cluster::{NOTICE, Object, Written};
use state::{
    Agent, Azure, Budget, Event, Ghost, Names, Operator, PODS, PodState, Sibling, State, Task, Work, Wrong,
};

/// Moments at which something may be due, in seconds since an announcement: the operator's patience, escalation, last
/// call, the report before the end, the end, the least effort; and when a VM that lives on counts as spared.
const MOMENTS: [Time; 8] = [3, 8, LAST_CALL, SAYS, NOTICE, DONE, RESTARTED, 1320];
/// When a drain with its last call is due: from then on somebody must be there.
const LAST_CALL: Time = 23;
/// When it is said which pods will be left.
const SAYS: Time = 29;
/// By then Azure has done what it announced.
const DONE: Time = 41;
/// A program that died is started again by then.
const RESTARTED: Time = 650;
/// Writes of one Node in one moment at most: more are a quarrel.
const MOST_WRITES: u8 = 16;

/// What is checked: how it begins, and how much may go wrong.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Whom Azure's events name.
    pub names: Names,
    /// Whether a person has closed the node before.
    pub cordoned: bool,
    /// Whether its agent runs already.
    pub has_agent: bool,
    /// What may go wrong.
    pub budget: Budget,
}

/// Something that agent or operator could do wrong, to see that the checker would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A drain is over when every pod was asked, not when they are gone.
    DoneWhenAsked,
    /// An agent that comes back does not read what stands on its Node.
    Forgets,
    /// What is left is said when the time is over, not before.
    SaysAtTheEnd,
    /// The operator claims what the agent has claimed.
    AgentNotAsked,
    /// A claim does not test the notice that stands there.
    ClaimUntested,
    /// An event of another VM is taken for one of this.
    EveryEventIsOurs,
    /// Every cordon is taken for the agent's own.
    EveryCordonIsOurs,
    /// The document of a metadata service that starts over is believed.
    AnyDocumentTells,
}

/// A VM takes with it no pod that was neither told to go nor is named on the Node.
pub const REPORTED: &str = "every pod is told to go or named, if anybody is there at the end";
/// `Drained` is the truth.
pub const TRUE: &str = "a node is called drained when no pod is left, and not before";
/// Pods of nodes that nothing threatens stay.
pub const NAMED: &str = "no pod is told to go on a node that no event names";
/// A node that goes takes no new pods.
pub const CLOSED: &str = "a node that Azure takes stays closed";
/// One drains at a time.
pub const ONE: &str = "the operator takes no notice from an agent that has claimed it";
/// Nobody writes for ever.
pub const REST: &str = "writes end";
/// Nodes that live on are as they were.
pub const CLEAN: &str = "of a node that lives on all marks are gone, and a person's cordon is not";

/// So that nothing above holds for want of what it is about.
pub const OPERATOR_DRAINS: &str = "the operator drains";
/// The same.
pub const NAMES_PODS: &str = "pods are named that are left";
/// The same.
pub const LIVES_ON: &str = "a node lives on";

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Azure announces that it takes VMs.
    Announce,
    /// It takes that back before its time.
    TakeBack,
    /// The document does not name the event any more: its time has come.
    Vanish,
    /// … and it did not happen.
    Spare,
    /// … or the VM came back with another boot.
    Reboot,
    /// The VM goes.
    Go,
    /// The sibling's agent reads the document, and tells.
    SiblingTells,
    /// The sibling goes.
    SiblingGoes,
    /// A pod that was told to go is gone.
    PodEnds(usize),
    /// The agent reads the document.
    Poll,
    /// It reads one of a metadata service that starts over.
    PollAmnesia,
    /// It sees its Node.
    See,
    /// It writes its Node.
    Write,
    /// It does, and does not hear that.
    WriteUnheard,
    /// It asks a pod to go.
    Ask(usize),
    /// It dies.
    AgentDies,
    /// The next one starts.
    AgentStarts,
    /// The leader sees both Nodes.
    LeaderSees,
    /// It writes this Node.
    LeaderWrites,
    /// It does, and does not hear that.
    LeaderWritesUnheard,
    /// It asks a pod to go.
    LeaderAsks(usize),
    /// It dies.
    LeaderDies,
    /// Another leads.
    LeaderStarts,
    /// Time passes, since nobody has anything to do.
    Tick,
    /// Time passes all the same.
    Slow,
}

/// The model.
pub struct Eviction {
    bounds: Bounds,
    mutation: Option<Mutation>,
}

impl Eviction {
    /// Within `bounds`; with something wrong, perhaps.
    pub fn new(bounds: Bounds, mutation: Option<Mutation>) -> Self {
        Self { bounds, mutation }
    }

    /// What programs that run do by themselves, at once.
    fn due(&self, state: &State, steps: &mut Vec<Step>) {
        if let Some(agent) = &state.agent {
            if agent.read != Some(state.azure.incarnation) {
                steps.push(Step::Poll);
            }
            if agent.view != state.node {
                steps.push(Step::See);
            }
            if agent.edit(self.mutation).is_some() {
                steps.push(Step::Write);
            }
            let asks = agent.drains().and_then(|flow| drain::asks(flow, state.pods, state.now));
            steps.extend(asks.map(Step::Ask));
        }
        if state.sibling != Self::siblings_word(state) {
            steps.push(Step::SiblingTells);
        }
        if let Some(operator) = &state.operator {
            if (&operator.view.0, operator.view.1) != (&state.node, state.sibling) {
                steps.push(Step::LeaderSees);
            }
            if operator.edit(self.mutation).is_some() {
                steps.push(Step::LeaderWrites);
            }
            let asks = operator.drains().and_then(|flow| drain::asks(flow, state.pods, state.now));
            steps.extend(asks.map(Step::LeaderAsks));
        }
    }

    /// Drains look at pods and clock.
    fn look(&self, state: &mut State) {
        let (now, mutation) = (state.now, self.mutation);
        if let Some(agent) = &mut state.agent {
            if agent.drains().is_some()
                && let Some(flow) = &mut agent.flow
            {
                drain::look(flow, state.pods, now, mutation);
            }
            agent.think(now, mutation);
        }
        if let Some(operator) = &mut state.operator {
            if let Some(Task { work: Work::Drain(flow), .. }) = &mut operator.task {
                drain::look(flow, state.pods, now, mutation);
            }
            operator.settle(now, mutation);
        }
    }

    /// What the sibling says once it has read the document.
    fn siblings_word(state: &State) -> Sibling {
        let named = state.azure.event.filter(|event| event.names != Names::This);
        let announced = |event: u8| state.azure.announced.get(usize::from(event)).map_or(0, |(at, _)| *at);
        match (state.sibling, named) {
            (Sibling::Gone, _) => Sibling::Gone,
            (_, Some(event)) => Sibling::Tells(event, announced(event.number)),
            (Sibling::Tells(event, seen), None) => Sibling::Over(event.number, seen),
            (silent, None) => silent,
        }
    }

    fn since_announced(state: &State) -> Option<Time> {
        state.azure.announced.last().map(|(at, _)| state.now - at)
    }

    fn next_moment(state: &State) -> Option<Time> {
        let moments =
            state.azure.announced.iter().flat_map(|(at, _)| MOMENTS.iter().map(move |moment| at + moment));
        let next = moments.filter(|moment| *moment > state.now).min()?;
        // Azure does what it has announced.
        let is_over = !state.azure.dooms || Self::since_announced(state).is_none_or(|since| since < DONE);
        is_over.then_some(next)
    }

    fn may_start(state: &State) -> bool {
        Self::since_announced(state).is_none_or(|since| since <= RESTARTED)
    }

    fn pass(&self, state: &mut State, is_late: bool) -> Option<()> {
        let next = Self::next_moment(state)?;
        if (state.agent.is_none() || state.operator.is_none())
            && next > state.azure.announced.last()?.0 + RESTARTED
        {
            return None;
        }
        let since = Self::since_announced(state)?;
        let by_operator = state.node.active().is_some_and(|it| it.by == Claimant::Operator);
        let is_attended = state.agent.is_some() || (state.operator.is_some() && by_operator);
        state.ghost.unattended |= since >= LAST_CALL && (is_late || !is_attended);
        let names_this = state.azure.event.is_some_and(|event| event.names != Names::Sibling);
        let could_know = state.agent.is_some() && (names_this || state.ghost.marked);
        if state.azure.dooms && could_know && !is_late && !is_closed(&state.node) {
            state.ghost.wrong = Some(Wrong::Open);
        }
        state.ghost.writes = 0;
        state.now = next;
        if !is_late {
            let document = cluster::document(&state.azure, self.mutation);
            if let Some(agent) = &mut state.agent {
                agent.poll(&document, state.azure.incarnation, next, self.mutation);
            }
            if let Some(operator) = &mut state.operator {
                operator.tend(&state.node, next, self.mutation);
            }
        }
        self.look(state);
        Some(())
    }

    /// Writes the Node, if it is as `base` was.
    fn write(&self, state: &mut State, base: &Object, edit: &Edit) {
        let before = state.node.clone();
        match cluster::write(&before, base, edit, self.mutation) {
            Written::Refused => return,
            Written::Unpatchable => state.ghost.wrong = Some(Wrong::Unpatchable),
            Written::Landed(node) => state.node = node,
        }
        state.ghost.writes += 1;
        if state.ghost.writes > MOST_WRITES {
            state.ghost.wrong = Some(Wrong::NoRest);
        }
        let Some(after) = state.node.active() else { return };
        let number = state.azure.announced.len().checked_sub(1).map(|number| number as u8);
        state.ghost.marked |= number.is_some_and(|number| after.event_id == cluster::event_id(number));
        let was = before.active().filter(|it| it.takes_capacity());
        if was.is_some_and(|it| it.by == Claimant::NodeAgent) && after.by == Claimant::Operator {
            state.ghost.wrong = Some(Wrong::TakenFromAgent);
        }
        let is_called = after.phase == Phase::Drained && was.is_none_or(|was| was.phase != Phase::Drained);
        if is_called && state.pods.iter().any(|pod| *pod != PodState::Gone) {
            state.ghost.wrong = Some(Wrong::CalledDrained);
        }
    }

    fn was_named(state: &State) -> bool {
        state.azure.announced.iter().any(|(_, names)| *names != Names::Sibling)
    }

    /// The VM goes: what becomes of its pods, and who knows.
    fn go(state: &mut State) {
        state.azure.exists = false;
        let is_early = Self::since_announced(state).is_none_or(|since| since < NOTICE);
        let is_named = |pod: usize| state.node.active().is_some_and(|notice| drain::names(notice, pod));
        let is_lost = |pod: &usize| state.pods[*pod] == PodState::Runs && !is_named(*pod);
        if !is_early && !state.ghost.unattended && (0..PODS).any(|pod| is_lost(&pod)) {
            state.ghost.wrong = Some(Wrong::Unreported);
        }
    }

    fn azures_steps(state: &State, steps: &mut Vec<Step>) {
        let (azure, budget) = (&state.azure, &state.budget);
        let since = Self::since_announced(state).unwrap_or_default();
        if azure.event.is_none() && !azure.dooms && budget.notices > 0 && since <= DONE {
            steps.push(Step::Announce);
        }
        if azure.event.is_some() && since < NOTICE && budget.taken_back > 0 {
            steps.push(Step::TakeBack);
        }
        if (NOTICE..=DONE).contains(&since) {
            if azure.event.is_some() {
                steps.push(Step::Vanish);
            }
            if azure.event.is_none() && azure.dooms && budget.spared > 0 {
                steps.push(Step::Spare);
            }
            if azure.dooms && budget.reboots > 0 {
                steps.push(Step::Reboot);
            }
        }
        if azure.dooms && (since >= NOTICE || budget.early > 0) {
            steps.push(Step::Go);
        }
        if budget.sibling_goes > 0 && matches!(state.sibling, Sibling::Tells(..)) {
            steps.push(Step::SiblingGoes);
        }
    }

    fn faults(state: &State, steps: &mut Vec<Step>) {
        let budget = &state.budget;
        if budget.lost > 0 {
            let unheard: Vec<Step> = steps
                .iter()
                .filter_map(|step| match step {
                    Step::Write => Some(Step::WriteUnheard),
                    Step::LeaderWrites => Some(Step::LeaderWritesUnheard),
                    _ => None,
                })
                .collect();
            steps.extend(unheard);
        }
        if let Some(agent) = &state.agent {
            if budget.agent_dies > 0 {
                steps.push(Step::AgentDies);
            }
            // The first document of an agent is believed: it knows of none before.
            if budget.amnesia > 0 && agent.read.is_some() {
                steps.push(Step::PollAmnesia);
            }
        } else if Self::may_start(state) {
            steps.push(Step::AgentStarts);
        }
        if state.operator.is_some() {
            if budget.leader_dies > 0 {
                steps.push(Step::LeaderDies);
            }
        } else if Self::may_start(state) {
            steps.push(Step::LeaderStarts);
        }
    }

    fn is_clean(&self, state: &State) -> bool {
        let node = &state.node.node;
        let is_tainted = node.spec.taints.iter().flatten().any(|taint| taint["key"] == names::EVICTING_TAINT);
        let is_over = state.node.notice.as_ref().is_none_or(|notice| !notice.is_active() && !notice.cordoned);
        let is_excluded = node.label(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL).is_some();
        is_over && !is_tainted && !is_excluded && node.spec.unschedulable == self.bounds.cordoned
    }

    /// Nothing is left that could happen, and the node lives on.
    fn has_settled(&self, state: &State) -> bool {
        let is_at_rest = || {
            let mut steps = Vec::new();
            self.due(state, &mut steps);
            steps.is_empty()
        };
        state.azure.exists
            && !state.azure.dooms
            && !state.azure.announced.is_empty()
            && state.agent.is_some()
            && state.operator.is_some()
            && Self::next_moment(state).is_none()
            && is_at_rest()
    }
}

fn is_closed(node: &Object) -> bool {
    node.node.spec.unschedulable && node.active().is_some()
}

impl Model for Eviction {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let Some(node) = cluster::bare(self.bounds.cordoned) else { return Vec::new() };
        let mut agent = Agent::start(&node, -10, self.mutation);
        let azure = Azure { incarnation: 1, event: None, announced: Vec::new(), dooms: false, exists: true };
        agent.poll(&cluster::document(&azure, self.mutation), 1, 0, self.mutation);
        vec![State {
            now: 0,
            azure,
            pods: [PodState::Runs; PODS],
            sibling: Sibling::Silent,
            agent: self.bounds.has_agent.then_some(agent),
            operator: Some(Operator::start(&node, Sibling::Silent, 0, self.mutation)),
            node,
            budget: self.bounds.budget,
            ghost: Ghost::default(),
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if !state.azure.exists || state.ghost.wrong.is_some() {
            return;
        }
        self.due(state, steps);
        let is_at_rest = steps.is_empty();
        Self::faults(state, steps);
        Self::azures_steps(state, steps);
        let ending = (0..PODS).filter(|pod| state.pods[*pod] == PodState::Ends);
        steps.extend(ending.map(Step::PodEnds));
        if is_at_rest {
            steps.push(Step::Tick);
        } else if state.budget.slow > 0 {
            steps.push(Step::Slow);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let now = state.now;
        match step {
            Step::Announce => {
                state.budget.notices -= 1;
                let (number, names) = (state.azure.announced.len() as u8, self.bounds.names);
                state.azure.announced.push((now, names));
                state.azure.event = Some(Event { number, names });
                state.azure.dooms = names != Names::Sibling;
                state.azure.incarnation += 1;
                (state.ghost.unattended, state.ghost.marked) = (false, false);
            }
            Step::TakeBack => {
                state.budget.taken_back -= 1;
                (state.azure.event, state.azure.dooms) = (None, false);
                state.azure.incarnation += 1;
            }
            Step::Vanish => {
                state.azure.event = None;
                state.azure.incarnation += 1;
            }
            Step::Spare => {
                state.budget.spared -= 1;
                state.azure.dooms = false;
            }
            Step::Reboot => {
                state.budget.reboots -= 1;
                if state.azure.event.take().is_some() {
                    state.azure.incarnation += 1;
                }
                state.azure.dooms = false;
                state.agent = None;
                state.node = cluster::rebooted(&state.node)?;
            }
            Step::Go => {
                if Self::since_announced(&state).is_some_and(|since| since < NOTICE) {
                    state.budget.early -= 1;
                }
                Self::go(&mut state);
            }
            Step::SiblingTells => state.sibling = Self::siblings_word(&state),
            Step::SiblingGoes => {
                state.budget.sibling_goes -= 1;
                state.sibling = Sibling::Gone;
            }
            Step::PodEnds(pod) => {
                state.pods[pod] = PodState::Gone;
                self.look(&mut state);
            }
            Step::Poll => {
                let document = cluster::document(&state.azure, self.mutation);
                state.agent.as_mut()?.poll(&document, state.azure.incarnation, now, self.mutation);
            }
            Step::PollAmnesia => {
                state.budget.amnesia -= 1;
                let document = cluster::forgetful(self.mutation, &state.azure);
                let agent = state.agent.as_mut()?;
                let read = agent.read?;
                agent.poll(&document, read, now, self.mutation);
            }
            Step::See => {
                let node = state.node.clone();
                state.agent.as_mut()?.see(&node, now, self.mutation);
            }
            Step::Write | Step::WriteUnheard => {
                let agent = state.agent.as_ref()?;
                let (base, edit) = (agent.view.clone(), agent.edit(self.mutation)?);
                self.write(&mut state, &base, &edit);
                if step == Step::WriteUnheard {
                    state.budget.lost -= 1;
                } else {
                    let node = state.node.clone();
                    state.agent.as_mut()?.see(&node, now, self.mutation);
                }
            }
            Step::Ask(pod) => {
                let agent = state.agent.as_mut()?;
                let has_heard = agent.read == Some(state.azure.incarnation);
                let is_taken_back = !state.azure.dooms && state.azure.event.is_none();
                drain::ask(agent.flow.as_mut()?, &mut state.pods, pod, now);
                self.look(&mut state);
                let in_time = Self::since_announced(&state).is_some_and(|since| since < NOTICE);
                if !Self::was_named(&state) || (has_heard && is_taken_back && in_time) {
                    state.ghost.wrong = Some(Wrong::NotNamed);
                }
            }
            Step::AgentDies => {
                state.budget.agent_dies -= 1;
                state.agent = None;
            }
            Step::AgentStarts => {
                state.agent = Some(Agent::start(&state.node, now, self.mutation));
                // Its first answers may come too late.
                state.ghost.unattended |= Self::since_announced(&state).is_some_and(|since| since >= SAYS);
            }
            Step::LeaderSees => {
                let (node, sibling) = (state.node.clone(), state.sibling);
                let operator = state.operator.as_mut()?;
                operator.view = (node.clone(), sibling);
                operator.tend(&node, now, self.mutation);
            }
            Step::LeaderWrites | Step::LeaderWritesUnheard => {
                let (base, edit) = state.operator.as_ref()?.edit(self.mutation)?;
                let base = base.clone();
                self.write(&mut state, &base, &edit);
                if step == Step::LeaderWritesUnheard {
                    state.budget.lost -= 1;
                } else {
                    let operator = state.operator.as_mut()?;
                    operator.task.as_mut()?.base = state.node.clone();
                    operator.settle(now, self.mutation);
                    // One that has ended makes room for the next.
                    if operator.task.is_none() && operator.view.0 == state.node {
                        operator.tend(&state.node, now, self.mutation);
                    }
                }
            }
            Step::LeaderAsks(pod) => {
                if let Work::Drain(flow) = &mut state.operator.as_mut()?.task.as_mut()?.work {
                    drain::ask(flow, &mut state.pods, pod, now);
                }
                self.look(&mut state);
                if !Self::was_named(&state) {
                    state.ghost.wrong = Some(Wrong::NotNamed);
                }
            }
            Step::LeaderDies => {
                state.budget.leader_dies -= 1;
                state.operator = None;
            }
            Step::LeaderStarts => {
                state.operator = Some(Operator::start(&state.node, state.sibling, now, self.mutation));
            }
            Step::Tick | Step::Slow => {
                state.budget.slow -= u8::from(step == Step::Slow);
                self.pass(&mut state, step == Step::Slow)?;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(REPORTED, |_, state: &State| state.ghost.wrong != Some(Wrong::Unreported)),
            Property::always(TRUE, |_, state: &State| state.ghost.wrong != Some(Wrong::CalledDrained)),
            Property::always(NAMED, |_, state: &State| state.ghost.wrong != Some(Wrong::NotNamed)),
            Property::always(CLOSED, |_, state: &State| state.ghost.wrong != Some(Wrong::Open)),
            Property::always(ONE, |_, state: &State| state.ghost.wrong != Some(Wrong::TakenFromAgent)),
            Property::always(REST, |_, state: &State| {
                !matches!(state.ghost.wrong, Some(Wrong::NoRest | Wrong::Unpatchable))
            }),
            Property::always(CLEAN, |model: &Self, state: &State| {
                !model.has_settled(state) || model.is_clean(state)
            }),
            Property::sometimes(OPERATOR_DRAINS, |_, state: &State| {
                state.operator.as_ref().is_some_and(|operator| operator.drains().is_some())
            }),
            Property::sometimes(NAMES_PODS, |_, state: &State| {
                state
                    .agent
                    .iter()
                    .filter_map(Agent::drains)
                    .any(|flow| flow.told.as_ref().is_some_and(|told| !told.unfinished.is_empty()))
            }),
            Property::sometimes(LIVES_ON, |model: &Self, state: &State| model.has_settled(state)),
        ]
    }
}
