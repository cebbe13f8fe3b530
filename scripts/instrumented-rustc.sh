#!/bin/sh
# For RUSTC_WORKSPACE_WRAPPER: compiles the workspace's own crates with coverage instrumentation.
case " $* " in
*' --crate-name '*) exec "$@" -C instrument-coverage ;;
*) exec "$@" ;;
esac
