{{/* What the schema cannot say, each in a sentence that one can act on. */}}

{{- define "spotpool.checks" -}}
{{- $uuid := "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$" }}
{{- $azure := .Values.azure }}
{{- if .Values.operator.enabled }}
{{- if eq $azure.cloud "China" }}
{{- fail "azure.cloud: Azure China sells no spot VMs, and the operator refuses to run there. Set operator.enabled=false to install the agents alone." }}
{{- end }}
{{- if not (regexMatch $uuid $azure.subscriptionId) }}
{{- fail (printf "azure.subscriptionId: give the id of the cluster's subscription, of the form 00000000-0000-0000-0000-000000000000 (az account show --query id); it is %q." $azure.subscriptionId) }}
{{- end }}
{{- if not $azure.resourceGroup }}
{{- fail "azure.resourceGroup: give the resource group of the AKS cluster (az aks list --output table)." }}
{{- end }}
{{- if hasPrefix "MC_" $azure.resourceGroup }}
{{- fail (printf "azure.resourceGroup: %s looks like the group of the cluster's nodes; give the one that the cluster itself is in (az aks list --output table)." $azure.resourceGroup) }}
{{- end }}
{{- if not $azure.clusterName }}
{{- fail "azure.clusterName: give the name of the AKS cluster (az aks list --output table)." }}
{{- end }}
{{- if and (eq $azure.credential "workload-identity") (not (regexMatch $uuid $azure.clientId)) }}
{{- fail (printf "azure.clientId: workload identity needs the client id of the identity (az identity show --query clientId), or set azure.credential=managed-identity; it is %q." $azure.clientId) }}
{{- end }}
{{- if and $azure.clientId (not (regexMatch $uuid $azure.clientId)) }}
{{- fail (printf "azure.clientId: %q is no client id (az identity show --query clientId)." $azure.clientId) }}
{{- end }}
{{- if and (gt (int .Values.operator.replicas) 1) (not .Values.operator.leaderElection.enabled) }}
{{- fail "operator.leaderElection.enabled: several replicas without an election would all buy nodes. Set operator.replicas=1 or leave the election on." }}
{{- end }}
{{- end }}
{{- if eq (int .Values.agent.port) (int .Values.agent.noticePort) }}
{{- fail "agent.noticePort: must differ from agent.port, both are open on the node's own address." }}
{{- end }}
{{- end }}
