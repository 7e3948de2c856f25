#!/bin/sh
# Compiles what is fuzzed with libFuzzer's coverage, and everything else as it is: cargo calls this in
# place of rustc for the packages of the workspace (RUSTC_WORKSPACE_WRAPPER). All options are stable ones.
case "$*" in
*"--crate-name pointsman"* | *"--crate-name pointsman_fuzz "*)
    exec "$@" \
        -C passes=sancov-module \
        -C llvm-args=-sanitizer-coverage-level=4 \
        -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
        -C llvm-args=-sanitizer-coverage-pc-table \
        -C llvm-args=-sanitizer-coverage-trace-compares \
        -C debug-assertions -C overflow-checks --cfg fuzzing
    ;;
*) exec "$@" ;;
esac
