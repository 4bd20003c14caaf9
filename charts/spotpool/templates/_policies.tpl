{{/* Pieces of the admission policies of agents and operator, in CEL. */}}

{{/* The node that the Pod of a token runs on: Kubernetes itself puts it into the token. */}}
{{- define "spotpool.cel.node" -}}
request.userInfo.?extra[?'authentication.kubernetes.io/node-name'].orValue([''])[0]
{{- end }}

{{/*
Labels or annotations that a request changes although it may not, as a list of keys:
(dict "of" "labels" "writes" (list …) "removes" (list …))
*/}}
{{- define "spotpool.cel.changed" -}}
{{- $before := printf "oldObject.metadata.?%s" .of }}{{ $after := printf "object.metadata.?%s" .of }}
{{- $writes := printf "['%s']" (join "', '" .writes) -}}
{{ $before }}.orValue({}).filter(key, !(key in {{ $writes }})
&& {{ $before }}[?key] != {{ $after }}[?key]
{{- with .removes }}
&& !(key in ['{{ join "', '" . }}'] && !{{ $after }}[?key].hasValue())
{{- end }})
+ {{ $after }}.orValue({}).filter(key, !(key in {{ $writes }}) && !{{ $before }}[?key].hasValue())
{{- end }}

{{/*
Whether these fields are as they were: (list "spec" (list …)). Not every Kubernetes knows all of them, which "dyn" hides from
the check of types that each API server makes.
*/}}
{{- define "spotpool.cel.same" -}}
{{- $of := index . 0 }}
{{- range $number, $field := index . 1 }}
{{- if $number }}
&& {{ end -}}
dyn(object).?{{ $of }}.?{{ $field }} == dyn(oldObject).?{{ $of }}.?{{ $field }}
{{- end }}
{{- end }}

{{/* What both programs leave as it is on every object. */}}
{{- define "spotpool.cel.sameOwners" -}}
object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences
&& object.metadata.?finalizers == oldObject.metadata.?finalizers
{{- end }}

{{/* The label that takes a node out of load balancers is put on and taken off with our value alone. */}}
{{- define "spotpool.cel.loadBalancers" -}}
{{- $label := "labels[?'node.kubernetes.io/exclude-from-external-load-balancers']" -}}
oldObject.metadata.?{{ $label }} == object.metadata.?{{ $label }}
|| oldObject.metadata.?{{ $label }}.orValue('spotpool.dev') == 'spotpool.dev'
&& object.metadata.?{{ $label }}.orValue('spotpool.dev') == 'spotpool.dev'
{{- end }}

{{/* Conditions of all types but one, as they are in: (list "object" "EvictionNoticed") */}}
{{- define "spotpool.cel.otherConditions" -}}
{{ index . 0 }}.?status.?conditions.orValue([]).filter(it, it.type != '{{ index . 1 }}')
{{- end }}

{{/* Fields of a Node's spec beside taints and cordon. */}}
{{- define "spotpool.cel.sameNodeSpec" -}}
{{- include "spotpool.cel.same" (list "spec" (list "configSource" "externalID" "podCIDR" "podCIDRs" "providerID")) }}
{{- end }}

{{/* Fields of a Pod's status beside its conditions; a test holds the list against the API server's own. */}}
{{- define "spotpool.cel.samePodStatus" -}}
{{- include "spotpool.cel.same" (list "status" (list "allocatedResources" "containerStatuses" "ephemeralContainerStatuses"
  "extendedResourceClaimStatus" "hostIP" "hostIPs" "initContainerStatuses" "message" "nominatedNodeName" "observedGeneration"
  "phase" "podIP" "podIPs" "qosClass" "reason" "resize" "resourceClaimStatuses" "resources" "startTime")) }}
{{- end }}
