#!/usr/bin/env bash
# A SLURM of one node on the loopback, in a folder of its own: `slurm.sh FOLDER start`, `slurm.sh FOLDER stop`.
# Needs root, and Debian's slurmctld, slurmd, slurm-client and munge. Say `export SLURM_CONF=FOLDER/slurm.conf` then.
set -euo pipefail
folder=$(realpath -m "$1") host=$(hostname -s)

if [ "$2" = stop ]; then
    for name in slurmctld slurmd; do
        [ ! -f "$folder/$name.pid" ] || kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
    done
    [ ! -f "$folder/munged.pid" ] || kill "$(cat "$folder/munged.pid")" 2>/dev/null || true
    exit
fi

mkdir -p "$folder"/{state,spool,munge}
chmod 755 "$folder"; chmod 700 "$folder/munge"
head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 400 "$folder/munge/key"
cat > "$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$(free -m | awk "/^Mem/ { print \$2 }") State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=15 PreemptMode=REQUEUE
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge/seed"
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd
for _ in $(seq 60); do
    [ "$(sinfo --noheader --format %T --partition low 2>&-)" != idle ] || exit 0
    sleep 0.5
done
cat "$folder"/slurm*.log >&2
exit 1
