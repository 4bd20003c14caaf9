//! The protocol between agents, operator and Azure as a model that is checked exhaustively, in stated bounds: every
//! order in which things may happen, and every fault at every step. See `docs/design/protocol.md`.
//!
//! Decisions are made by the programs' own functions; the model has what lies between them.

pub mod capacity;
pub mod eviction;
mod time;
