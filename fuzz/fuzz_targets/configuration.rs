//! What operators write: configurations in TOML, rollouts in TOML, YAML and JSON.

#![no_main]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_api::rollouts::RolloutSpec;
use shoal_fuzz::heap;
use shoal_hub::HubConfig;
use shoal_peer::PeerConfig;
use shoal_seeder::SeederConfig;
use shoal_service::config::render;
use shoal_tracker::TrackerConfig;
use std::fmt::Debug;

/// Reads a configuration, prints it with its defaults, and reads it again.
fn config<T: DeserializeOwned + Serialize + PartialEq + Debug>(table: &toml::Table) -> Option<T> {
    let read = T::deserialize(table.clone()).ok()?;
    let printed = render(&read).expect("a configuration that was read can be printed");
    let again = printed.parse::<toml::Table>().expect("what was printed is TOML");
    match T::deserialize(again) {
        Ok(again) => assert_eq!(again, read, "another configuration was read again"),
        Err(error) => panic!("a printed configuration is refused: {error}\n{printed}"),
    }
    Some(read)
}

fn check_toml(text: &str) {
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let _ = config::<PeerConfig>(&table).map(|config| config.validate());
    let _ = config::<SeederConfig>(&table).map(|config| config.validate());
    let _ = config::<TrackerConfig>(&table).map(|config| config.validate());
    let _ = config::<HubConfig>(&table).map(|config| config.validate());
    check_spec(RolloutSpec::deserialize(table).ok());
}

fn check_spec(spec: Option<RolloutSpec>) {
    let Some(spec) = spec else { return };
    // The seeder gets it as JSON.
    let json = serde_json::to_vec(&spec).expect("a rollout that was read can be written");
    match serde_json::from_slice::<RolloutSpec>(&json) {
        Ok(again) => assert_eq!(again, spec),
        Err(error) => panic!("a rollout is refused after it was read and written: {error}: {spec:?}"),
    }
    shoal_seeder::fuzzing::check_rollout(&spec);
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [form, data @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(data) else { return };
    heap::bounded((4 << 20) + 2000 * data.len(), || match form % 3 {
        0 => check_toml(text),
        1 => check_spec(serde_saphyr::from_str(text).ok()),
        _ => check_spec(serde_json::from_str(text).ok()),
    });
});
