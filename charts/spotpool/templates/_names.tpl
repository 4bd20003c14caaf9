{{/* Names are fixed: agents are on every node and rights are the cluster's, so there is one installation in a cluster. */}}

{{- define "spotpool.labels" -}}
app.kubernetes.io/part-of: spotpool
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Name of an image: (list $ .Values.operator.image) */}}
{{- define "spotpool.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* An argument, or nothing where the value is empty: (list "--currency" .Values.azure.currency) */}}
{{- define "spotpool.arg" -}}
{{- $value := index . 1 | toString }}
{{- if $value }}
- {{ printf "%s=%s" (index . 0) $value | quote }}
{{- end }}
{{- end }}

{{/* Arguments of both programs */}}
{{- define "spotpool.commonArgs" -}}
{{- include "spotpool.arg" (list "--log-format" .Values.log.format) }}
{{- include "spotpool.arg" (list "--log-level" .Values.log.level) }}
{{- include "spotpool.arg" (list "--otlp-endpoint" .Values.tracing.otlpEndpoint) }}
{{- if .Values.caBundle.configMap }}
{{- include "spotpool.arg" (list "--ca-bundle" (printf "/etc/spotpool/ca/%s" .Values.caBundle.key)) }}
{{- end }}
{{- end }}

{{/* What each container may do: nothing but run its program */}}
{{- define "spotpool.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/*
Any number will do that is nobody's: neither program opens a port below 1024 or a file of the node's. On the host's network the
agent needs no rights of root either, since any user of a node may ask the metadata service.
*/}}
{{- define "spotpool.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
