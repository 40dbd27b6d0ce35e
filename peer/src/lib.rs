//! The peer role, and the node driver that turns the brain's outputs into effects.
