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
{{- if .Values.tls.secret }}
{{- include "spotpool.arg" (list "--tls-cert-file" "/etc/spotpool/tls/tls.crt") }}
{{- include "spotpool.arg" (list "--tls-key-file" "/etc/spotpool/tls/tls.key") }}
{{- end }}
{{- end }}

{{/* Files that both programs read. */}}
{{- define "spotpool.volumeMounts" -}}
{{- if or .Values.caBundle.configMap .Values.tls.secret -}}
volumeMounts:
{{- if .Values.caBundle.configMap }}
- {name: ca, mountPath: /etc/spotpool/ca, readOnly: true}
{{- end }}
{{- if .Values.tls.secret }}
- {name: tls, mountPath: /etc/spotpool/tls, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- define "spotpool.volumes" -}}
{{- if or .Values.caBundle.configMap .Values.tls.secret -}}
volumes:
{{- if .Values.caBundle.configMap }}
- {name: ca, configMap: {name: {{ .Values.caBundle.configMap }}}}
{{- end }}
{{- if .Values.tls.secret }}
- {name: tls, secret: {secretName: {{ .Values.tls.secret }}}}
{{- end }}
{{- end }}
{{- end }}

{{/* A probe of the admin server: (list $ "/livez") */}}
{{- define "spotpool.probe" -}}
{path: {{ index . 1 }}, port: metrics{{ if (index . 0).Values.tls.secret }}, scheme: HTTPS{{ end }}}
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
