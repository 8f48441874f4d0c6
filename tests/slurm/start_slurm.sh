#!/usr/bin/env bash
# Start a real Slurm of several virtual nodes on this machine's loopback device, as root, for tests. It needs no systemd
# and no cgroups, keeps everything in one folder, and may be called again while it runs. stop_slurm.sh ends it.
#
#   SLURM_SANDBOX   folder of all its state         (run/ beside this script)
#   NODES           virtual nodes                   (2)
#   CPUS_PER_NODE   cores that a node advertises    (4; may be more than there are)
#   MEM_PER_NODE    memory that it advertises in MB (4000)
#   GPUS_PER_NODE   pretended GPUs of a node        (2; 0 for none)
#   ACCOUNTING      1 with a database, so that sacct answers; 0 without (1)
#   PORT_BASE       first of the 900 ports it uses  (17000)
#
# Afterwards: source $SLURM_SANDBOX/env.sh
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${SLURM_SANDBOX:-$HERE/run}
NODES=${NODES:-2}
CPUS_PER_NODE=${CPUS_PER_NODE:-4}
MEM_PER_NODE=${MEM_PER_NODE:-4000}
GPUS_PER_NODE=${GPUS_PER_NODE:-2}
ACCOUNTING=${ACCOUNTING:-1}
PORT_BASE=${PORT_BASE:-17000}
DBD_PORT=$((PORT_BASE + 1))
DB_PORT=$((PORT_BASE + 2))
HOST=$(hostname -s)
ETC=$ROOT/etc LOG=$ROOT/log PID=$ROOT/pid SPOOL=$ROOT/spool

fail() { echo "starting Slurm: $*" >&2; exit 1; }

alive() { # PIDFILE: the process runs and is no zombie
  local pid
  [ -s "$1" ] && pid=$(cat "$1") && [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status"
}

wait_for() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  while ! timeout 20 "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "starting Slurm: waited in vain for: $*" >&2; return 1; }
    sleep 0.1
  done
}

check_machine() {
  local program needed=(slurmctld slurmd munged)
  [ "$(id -u)" = 0 ] || fail "found user $(id -un). Run it as root."
  [ "$ACCOUNTING" = 1 ] && needed+=(slurmdbd mariadbd)
  for program in "${needed[@]}"; do
    command -v "$program" >/dev/null || fail "found no $program. On Debian:" \
      "apt-get install --no-install-recommends slurm-wlm slurm-wlm-basic-plugins munge slurmdbd mariadb-server"
  done
}

make_folders() {
  local n name
  mkdir -p "$ETC" "$LOG" "$PID" "$SPOOL/ctld" "$ROOT/munge" "$ROOT/tmp"
  chmod 755 "$ROOT" "$ETC" "$ROOT/munge"
  for ((n = 1; n <= NODES; n++)); do
    mkdir -p "$SPOOL/node$n" "$ROOT/tmp/node$n"
    chmod 1777 "$ROOT/tmp/node$n"
  done
  for name in "$HOST" $(seq -f 'node%g' "$NODES"); do # torch.distributed looks its host up by name
    # a line of this Slurm's own, though another one of these may have the same: who stops takes away their own
    echo "127.0.0.1 $name # hpccg-slurm-sandbox $ROOT" >> /etc/hosts
  done
}

write_accounting_settings() {
  if [ "$ACCOUNTING" = 1 ]; then
    # AccountingStoragePass names munge's socket: the clients would look for it in /run otherwise
    cat <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$DBD_PORT
AccountingStoragePass=$ROOT/munge/munge.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
END
  else
    printf '%s\n' AccountingStorageType=accounting_storage/none JobAcctGatherType=jobacct_gather/none
  fi
}

write_settings() {
  local grestypes="" gres=""
  [ "$GPUS_PER_NODE" -gt 0 ] && grestypes="GresTypes=gpu" gres="Gres=gpu:$GPUS_PER_NODE"
  {
    sed -e "s|@HOST@|$HOST|g; s|@ROOT@|$ROOT|g; s|@CTLD_PORT@|$PORT_BASE|g; s|@NODES@|$NODES|g" \
        -e "s|@CPUS@|$CPUS_PER_NODE|g; s|@MEM@|$MEM_PER_NODE|g; s|@GRESTYPES@|$grestypes|g; s|@GRES@|$gres|g" \
        -e "s|@SLURMD_FIRST@|$((PORT_BASE + 11))|g; s|@SLURMD_LAST@|$((PORT_BASE + 10 + NODES))|g" \
        -e "s|@SRUN_FIRST@|$((PORT_BASE + 100))|g; s|@SRUN_LAST@|$((PORT_BASE + 400))|g" \
        -e "s|@MPI_LAST@|$((PORT_BASE + 900))|g" "$HERE/slurm.conf.in"
    write_accounting_settings
  } > "$ETC/slurm.conf.new"
  mv "$ETC/slurm.conf.new" "$ETC/slurm.conf"
  printf '%s\n' CgroupAutomount=no ConstrainCores=no ConstrainDevices=no ConstrainRAMSpace=no > "$ETC/cgroup.conf"
  rm -f "$ETC/gres.conf"
  [ "$GPUS_PER_NODE" -eq 0 ] || write_pretended_gpus
}

write_pretended_gpus() { # each is a second name of /dev/null
  local g files
  mkdir -p "$ROOT/dev"
  for ((g = 0; g < GPUS_PER_NODE; g++)); do
    [ -e "$ROOT/dev/gpu$g" ] || mknod "$ROOT/dev/gpu$g" c 1 3
  done
  files="$ROOT/dev/gpu[0-$((GPUS_PER_NODE - 1))]"
  [ "$GPUS_PER_NODE" -gt 1 ] || files=$ROOT/dev/gpu0
  printf '%s\n' AutoDetect=off "NodeName=node[1-$NODES] Name=gpu File=$files" > "$ETC/gres.conf"
}

start_munge() {
  [ -s "$ROOT/munge/munge.key" ] || (umask 077; head -c 1024 /dev/urandom > "$ROOT/munge/munge.key")
  chmod 400 "$ROOT/munge/munge.key"
  alive "$PID/munged.pid" || munged --force --key-file="$ROOT/munge/munge.key" \
    --socket="$ROOT/munge/munge.socket" --pid-file="$PID/munged.pid" \
    --log-file="$LOG/munged.log" --seed-file="$ROOT/munge/seed"
  wait_for 10 munge -n -S "$ROOT/munge/munge.socket"
}

start_database() {
  local data=$ROOT/mariadb socket=$ROOT/mariadb.sock user
  [ -d "$data/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$data" \
    --auth-root-authentication-method=normal --skip-test-db > "$LOG/mariadb-install.log" 2>&1
  if ! alive "$PID/mariadbd.pid"; then
    setsid mariadbd --no-defaults --user=root --datadir="$data" --socket="$socket" --pid-file="$PID/mariadbd.pid" \
      --bind-address=127.0.0.1 --port="$DB_PORT" --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 \
      --innodb-flush-log-at-trx-commit=2 --skip-log-bin >> "$LOG/mariadbd.log" 2>&1 < /dev/null &
  fi
  wait_for 120 mariadb-admin --no-defaults --socket="$socket" -uroot ping || {
    tail -n 20 "$LOG/mariadb-install.log" "$LOG/mariadbd.log" >&2
    return 1
  }
  {
    echo "CREATE DATABASE IF NOT EXISTS slurm_acct_db;"
    for user in "'slurm'@'127.0.0.1'" "'slurm'@'localhost'"; do
      echo "CREATE USER IF NOT EXISTS $user IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct_db.* TO $user;"
    done
  } | mariadb --no-defaults --socket="$socket" -uroot
}

start_accounting() {
  start_database
  sed -e "s|@ROOT@|$ROOT|g; s|@DBD_PORT@|$DBD_PORT|g; s|@DB_PORT@|$DB_PORT|g" "$HERE/slurmdbd.conf.in" > "$ETC/slurmdbd.conf"
  chmod 600 "$ETC/slurmdbd.conf"
  alive "$PID/slurmdbd.pid" || slurmdbd
  wait_for 30 sacctmgr -n show cluster
  sacctmgr -n show cluster format=cluster | grep -q hpccg || sacctmgr -i add cluster hpccg > "$LOG/sacctmgr.log" 2>&1
}

nodes_ready() { [ "$(timeout 20 sinfo -h -N -p debug -t idle,alloc,mix -o %N | sort -u | wc -l)" -ge "$NODES" ]; }

wait_for_nodes() { # SECONDS
  local end=$((SECONDS + $1))
  until nodes_ready; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

start_nodes() {
  local n
  alive "$PID/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
  wait_for 30 scontrol ping
  for ((n = 1; n <= NODES; n++)); do
    alive "$PID/slurmd-node$n.pid" || slurmd -f "$SLURM_CONF" -N "node$n"
  done
  wait_for_nodes 10 && return
  timeout 20 scontrol update nodename="node[1-$NODES]" state=resume || true # a node that is up already refuses
  wait_for_nodes 20 || { timeout 20 sinfo -R >&2; fail "the nodes do not come up; see $LOG."; }
}

write_environment() {
  cat > "$ROOT/env.sh" <<END
export SLURM_CONF=$SLURM_CONF
# for srun --mpi=pmix: its direct connections between nodes fail where all nodes are one host
export SLURM_PMIX_DIRECT_CONN=false SLURM_PMIX_FENCE=tree
END
}

check_machine
make_folders
write_settings
export SLURM_CONF=$ETC/slurm.conf
start_munge
[ "$ACCOUNTING" = 0 ] || start_accounting
start_nodes
write_environment
echo "Slurm is up: $(timeout 20 sinfo -h -p debug -o '%P %D nodes %T %c cores %G' | head -1). Now: source $ROOT/env.sh"
