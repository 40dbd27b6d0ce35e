//! How many hosts a rollout's batches have.
//!
//! Invariant: goals never fall from one batch to the next, and some batch reaches every host.

use shoal_api::rollouts::RolloutSpec;

/// Returns how many of `total` hosts have switched at the end of a batch. Batches count from 0.
///
/// The last entry of the list is also the size of every further batch: `25%` gives 25, 50, 75 and 100 %.
pub(crate) fn goal(spec: &RolloutSpec, batch: u32, total: u32) -> u32 {
    let last = spec.batch.len().saturating_sub(1);
    let Some(step) = spec.batch.get(last).map(|amount| amount.of(total)) else { return total };
    let listed = spec.batch.iter().take((batch as usize).min(last) + 1).map(|amount| amount.of(total));
    let further = u64::from(batch).saturating_sub(last as u64) * u64::from(step);
    // The largest entry so far, because a list such as `50%,10%` must not shrink.
    let goal = u64::from(listed.max().unwrap_or(total)) + further;
    u32::try_from(goal).unwrap_or(total).min(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(batch: &[&str]) -> RolloutSpec {
        let mut spec = RolloutSpec::new("edge/a", "2", vec!["all".into()]);
        spec.batch = batch.iter().map(|text| text.parse().unwrap()).collect();
        spec
    }

    #[test]
    fn batches_reach_every_host() {
        let goals = |batch: &[&str], total| {
            let spec = spec(batch);
            let mut goals = Vec::new();
            for batch in 0.. {
                goals.push(goal(&spec, batch, total));
                if goals.last() == Some(&total) {
                    return goals;
                }
            }
            unreachable!()
        };
        assert_eq!(goals(&["1", "25%", "100%"], 16), [1, 4, 16]);
        assert_eq!(goals(&["25%"], 16), [4, 8, 12, 16]);
        assert_eq!(goals(&["1", "30%"], 10), [1, 3, 6, 9, 10]);
        assert_eq!(goals(&["5"], 12), [5, 10, 12]);
        assert_eq!(goals(&["5%"], 3), [1, 2, 3]);
        assert_eq!(goals(&["50%", "10%", "100%"], 10), [5, 5, 10], "a goal never falls");
        assert_eq!(goal(&spec(&["1"]), 0, 0), 0);
    }
}
