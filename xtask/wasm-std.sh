#!/bin/sh
# Gives Debian's rustc a standard library for wasm32-unknown-unknown, which no Debian package has:
# installs rustc-web, cargo-web and rust-web-src, and builds the library from that source, offline,
# from the dependencies that the package vendors. Run by `cargo xtask setup`, as root.
#
#   wasm-std.sh SYSROOT      the sysroot of a rustup toolchain, whose linker (rust-lld) is lent
set -eu

target=wasm32-unknown-unknown
lender=$1

apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	rustc-web cargo-web rust-web-src >/dev/null

sysroot=$(/usr/bin/rustc --print sysroot)
host=$(/usr/bin/rustc -vV | sed -n 's/^host: //p')
source=$sysroot/lib/rustlib/src/rust/library
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An empty crate: what is wanted is what cargo builds for it. -Zbuild-std is not stable, hence
# RUSTC_BOOTSTRAP; it affects nothing but this library. The bitcode lets plugins use lto.
mkdir "$work/src"
: >"$work/src/lib.rs"
cat >"$work/Cargo.toml" <<-END
	[package]
	name = "empty"
	version = "0.0.0"
	edition = "2021"
	[profile.release]
	opt-level = "s"
	[workspace]
END
(
	cd "$work"
	env -i PATH=/usr/bin:/bin HOME="$work" CARGO_HOME="$work/cargo" RUSTC=/usr/bin/rustc \
		RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Cembed-bitcode=yes \
		/usr/bin/cargo build --quiet --offline --release --target $target \
		-Zbuild-std=std,panic_abort \
		--config 'source.crates-io.replace-with="vendored"' \
		--config "source.vendored.directory=\"$source/vendor\""
)

mkdir -p "$sysroot/lib/rustlib/$host/bin"
ln -sfn "$lender/lib/rustlib/$host/bin/rust-lld" "$sysroot/lib/rustlib/$host/bin/rust-lld"

# Put in place whole and last: that it is there is how `cargo xtask setup` knows that all is done.
library=$sysroot/lib/rustlib/$target/lib
mkdir "$work/lib"
find "$work/target/$target/release/deps" -name '*.rlib' ! -name 'libempty-*' \
	-exec cp {} "$work/lib/" \;
rm -rf "$library"
mkdir -p "${library%/lib}"
mv "$work/lib" "$library"
