{{/*
Which ports a worker needs, from its settings.
*/}}

{{/* TCP ports of a NetworkPolicy, each once. */}}
{{- define "ringcast.networkPolicy.ports" -}}
{{- $ports := list -}}
{{- range . }}{{ $ports = append $ports (int .) }}{{ end -}}
{{- $rules := list -}}
{{- range $ports | uniq }}{{ $rules = append $rules (dict "protocol" "TCP" "port" .) }}{{ end -}}
{{- toYaml $rules -}}
{{- end -}}

{{/* The broker's ports, as JSON: the URI is a secret, so they are told; further hosts may have ports of their own. */}}
{{- define "ringcast.amqpPorts" -}}
{{- $ports := .Values.networkPolicy.amqpPorts -}}
{{- range (include "ringcast.config" . | fromJson).amqp.hosts -}}
{{- with include "ringcast.port" (dict "url" . "default" "") }}{{ $ports = append $ports . }}{{ end -}}
{{- end -}}
{{- $ports | toJson -}}
{{- end -}}

{{/* The ports of both environments, as JSON. Apple's own hosts serve 443 and 2197. */}}
{{- define "ringcast.apnsPorts" -}}
{{- $apns := (include "ringcast.effective" . | fromJson).apns -}}
{{- $ports := list -}}
{{- range list $apns.production $apns.sandbox -}}
{{- $ports = append $ports (include "ringcast.port" (dict "url" . "default" 443)) -}}
{{- if contains ".push.apple.com" . }}{{ $ports = concat $ports (list 443 2197) }}{{ end -}}
{{- end -}}
{{- $ports | toJson -}}
{{- end -}}
