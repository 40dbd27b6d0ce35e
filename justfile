# A thin menu. The work is done by ./test, cargo and the program itself.

# Lists the recipes.
default:
    @just --list

# Names the Debian packages that the tests need and that are missing.
setup:
    ./test --needs

# Format, lints, unit tests and repository rules: under 2 minutes after the first build.
quick:
    ./test quick

# Everything: quick, simulator seeds, stores, real regions, containerd, documents, licences.
check:
    ./test

# Whole regions of real processes only.
region:
    ./test region

# Racks in network namespaces (root). For example: just lab healthy, just lab slow-owners.
lab scenario="healthy" *options:
    cargo bench --locked --bench lab -- --scenario {{scenario}} {{options}}

# Honest pushes beside attacks, one row each: attack, ms alone, ms beside, ratio (root).
attacks:
    SHOAL_FIGURES=$PWD/target/attacks cargo test --locked --test hostile -- --test-threads 1
    cat target/attacks

# What each tuning rule of the scheduler is worth, over 40 seeds and all scenarios.
ablate:
    cargo run --locked --release -p shoal-sim --example ablate

# Writes the golden files of the wire formats and of the simulator. Review the difference before a commit.
bless:
    SHOAL_BLESS=1 cargo test --locked -q -p shoal-proto -p shoal-sim --test formats --test digests

# The API documentation, private items included.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

# The fuzz targets, each for the given seconds, or the named targets only. For example: just fuzz 600 swarm.
fuzz seconds="60" *targets:
    fuzz/run {{seconds}} {{targets}}

# The release binary: fat LTO, stripped, debug information in a file of its own.
dist:
    cargo build --locked --profile dist
    ls -l target/dist/shoal target/dist/shoal.dwp
