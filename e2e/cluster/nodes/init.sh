# The first process of a node, in namespaces that are the node's own: makes them a machine, then reaps what others leave.
# When it ends, the kernel ends the node with all of its containers and mounts.
set -eu
dir=$1 address=$2 gateway=$3 api=$4 metadata=$5 pods=$6

# What the kubelet, containerd and CNI plugins keep at places that they do not let one choose.
for place in /run /var/log /var/lib/cni; do
  mkdir -p "$place"
  mount -t tmpfs node "$place"
done
mkdir -p /run/netns

# The kubelet sets these for its machine, which is not meant to be this one.
while read -r key value; do
  mkdir -p "$dir/sysctl"
  printf '%s\n' "$value" >"$dir/sysctl/$key"
  mount --bind "$dir/sysctl/$key" "/proc/sys/$(printf %s "$key" | tr . /)"
done <<'SYSCTLS'
vm.overcommit_memory 1
vm.panic_on_oom 0
kernel.panic 10
kernel.panic_on_oops 1
kernel.keys.root_maxkeys 1000000
kernel.keys.root_maxbytes 25000000
SYSCTLS

ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip address add "$address/24" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
echo 1 >/proc/sys/net/ipv4/ip_forward
# The Service `kubernetes`, in kube-proxy's stead, and the machine's own metadata service: for the node and for its pods.
for chain in OUTPUT PREROUTING; do
  iptables -w -t nat -A "$chain" -d 10.96.0.1 -p tcp --dport 443 -j DNAT --to-destination "$api"
  iptables -w -t nat -A "$chain" -d 169.254.169.254 -p tcp --dport 80 -j DNAT --to-destination "$metadata"
done
iptables -w -t nat -A POSTROUTING -s "$pods" -o eth0 -j MASQUERADE

: >"$dir/is-up"
while :; do
  sleep 1000 &
  wait
done
