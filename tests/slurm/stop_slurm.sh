#!/usr/bin/env bash
# Stop what start_slurm.sh started: only daemons whose pid file lies in SLURM_SANDBOX and whose name is the right one.
# CLEAN=1 removes the folder too.
set -uo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${SLURM_SANDBOX:-$HERE/run}
export SLURM_CONF=$ROOT/etc/slurm.conf

gone() { [ ! -d "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; } # a zombie counts as gone

stop() { # PIDFILE NAME
  local pid
  [ -s "$1" ] || return 0
  pid=$(cat "$1")
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ]; then
    kill -TERM "$pid" 2>/dev/null
    for _ in {1..100}; do gone "$pid" && break; sleep 0.1; done
    gone "$pid" || kill -KILL "$pid"
  fi
  rm -f "$1"
}

cancel_jobs() {
  timeout 10 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 10 scancel 2>/dev/null
  for _ in {1..60}; do
    [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
    sleep 0.1
  done
}

[ ! -s "$ROOT/pid/slurmctld.pid" ] || cancel_jobs
for file in "$ROOT"/pid/slurmd-*.pid; do stop "$file" slurmd; done
for name in slurmctld slurmdbd mariadbd munged; do stop "$ROOT/pid/$name.pid" "$name"; done
if grep -qF "# hpccg-slurm-sandbox $ROOT" /etc/hosts; then
  kept=$(awk -v own="# hpccg-slurm-sandbox $ROOT" 'substr($0, length($0) - length(own) + 1) != own' /etc/hosts)
  printf '%s\n' "$kept" > /etc/hosts # in place, because the file may be mounted into a container
fi
[ "${CLEAN:-0}" = 0 ] || rm -rf "$ROOT"
echo "Slurm is down"
