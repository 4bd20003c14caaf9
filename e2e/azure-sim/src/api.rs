//! The vocabulary of the control API: what the server answers and [`crate::client::SimClient`] sends.
//!
//! Times are RFC 3339, durations are whole milliseconds in fields that end in `Ms`.

mod events;
mod faults;
mod pools;
mod settings;
mod state;
mod time;

pub use self::events::{Ack, EventRequest, EventState, Targets};
pub use self::faults::{ActiveFault, Envelope, Fault, FaultAction, FaultTarget};
pub use self::pools::{BackgroundOperation, Capacity, Failure, PoolSpec, Priority, Quota};
pub use self::settings::{CountAfterFailure, Identity, Settings, SettingsPatch};
pub use self::state::{
    ArmWrite, BucketState, GoneReason, KilledPod, OperationState, OperationStatus, PoolState, State,
    StepState, VmPhase, VmState,
};
pub use self::time::{duration, millis, optional_millis};
pub use crate::failures::FailureKind;
pub use crate::switches::{
    Allocation, CountOfAutoscaled, ETags, ImmutableChanges, OperationNames, QuotaRefusal, Switches,
};
