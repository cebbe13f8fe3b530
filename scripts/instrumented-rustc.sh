#!/bin/sh
# For RUSTC_WORKSPACE_WRAPPER: compiles the workspace's own crates so that they tell which of their lines ran.
case " $* " in
*' --crate-name '*) exec "$@" -C instrument-coverage ;;
*) exec "$@" ;;
esac
