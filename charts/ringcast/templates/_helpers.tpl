{{/*
Names, labels, and what is computed from the settings.
*/}}

{{- define "ringcast.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Leaves room for the longest ending, "-declare-" and a digest, within the 63 letters that names of Jobs and Services have. */}}
{{- define "ringcast.fullname" -}}
{{- $name := include "ringcast.name" . -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $both | trunc 46 | trimSuffix "-" -}}
{{- end -}}

{{/* What tells a release's objects, and those of one `component` of it, from all others. */}}
{{- define "ringcast.selectorLabels" -}}
app.kubernetes.io/name: {{ include "ringcast.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* What pods carry: nothing that changes with the chart alone, which would replace them all. The chart's own win over `more`. */}}
{{- define "ringcast.podLabels" -}}
{{- $version := .root.Values.image.tag | default .root.Chart.AppVersion | trunc 63 | trimAll "-_." -}}
{{- $own := dict "app.kubernetes.io/version" $version "app.kubernetes.io/part-of" "ringcast" -}}
{{- $selector := include "ringcast.selectorLabels" . | fromYaml -}}
{{- mergeOverwrite (dict) (.root.Values.commonLabels | default dict) (.more | default dict) $own $selector | toYaml -}}
{{- end -}}

{{/* What every object carries. */}}
{{- define "ringcast.labels" -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- $own := dict "helm.sh/chart" $chart "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- mergeOverwrite (include "ringcast.podLabels" . | fromYaml) $own | toYaml -}}
{{- end -}}

{{- define "ringcast.serviceAccountName" -}}
{{- with .Values.serviceAccount -}}
{{- .name | default (ternary (include "ringcast.fullname" $) "default" .create) -}}
{{- end -}}
{{- end -}}

{{/* A digest says exactly which image it is, so it wins. */}}
{{- define "ringcast.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Where existingSecret is mounted. */}}
{{- define "ringcast.secretsDir" -}}
/run/secrets/ringcast
{{- end -}}

{{- define "ringcast.simulator.name" -}}
{{ include "ringcast.fullname" . }}-simulator
{{- end -}}

{{- define "ringcast.simulator.dir" -}}
/run/secrets/simulator
{{- end -}}

{{/* Apple's second port, as the simulator has it by default. */}}
{{- define "ringcast.simulator.port" -}}
2197
{{- end -}}

{{/* The settings in effect, as JSON, as far as objects here depend on them: `ringcast.config` over what config/default.toml says. */}}
{{- define "ringcast.effective" -}}
{{- $defaults := dict
  "amqp" (dict "invites" (list "ringcast.invites") "results_exchange" "ringcast.results")
  "apns" (dict "production" "https://api.push.apple.com" "sandbox" "https://api.sandbox.push.apple.com" "proxy" "")
  "worker" (dict "deadline_max" "5m" "shutdown_grace" "30s")
  "admin" (dict "listen" "0.0.0.0:9090")
  "traces" (dict "otlp_endpoint" "")
-}}
{{- mergeOverwrite $defaults (include "ringcast.config" . | fromJson) | toJson -}}
{{- end -}}

{{/* "90s" in milliseconds. */}}
{{- define "ringcast.milliseconds" -}}
{{- $factors := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- mul (regexFind "^[0-9]+" .) (get $factors (regexFind "[a-z]+$" .)) -}}
{{- end -}}

{{/* The port of `url`, else `default`. */}}
{{- define "ringcast.port" -}}
{{- $authority := regexReplaceAll "^[a-z]+://" .url "" | regexFind "^[^/?#]*" -}}
{{- regexFind ":[0-9]+$" $authority | trimPrefix ":" | default .default -}}
{{- end -}}

{{- define "ringcast.adminPort" -}}
{{- include "ringcast.port" (dict "url" (include "ringcast.effective" . | fromJson).admin.listen "default" 9090) -}}
{{- end -}}

{{/* From SIGTERM to SIGKILL, in seconds: the worker's own grace, two for the last spans, and five to spare. */}}
{{- define "ringcast.terminationGracePeriodSeconds" -}}
{{- $effective := include "ringcast.effective" . | fromJson -}}
{{- $grace := include "ringcast.milliseconds" $effective.worker.shutdown_grace | int64 -}}
{{- add (div (add $grace 999) 1000) (ternary 2 0 (ne $effective.traces.otlp_endpoint "")) 5 -}}
{{- end -}}

{{/* What scales the workers, in effect: keda, hpa or none. */}}
{{- define "ringcast.scaler" -}}
{{- $kind := .Values.autoscaling.kind -}}
{{- if eq $kind "auto" -}}
{{- $kind = ternary "keda" "none" (.Capabilities.APIVersions.Has "keda.sh/v1alpha1") -}}
{{- end -}}
{{- $kind -}}
{{- end -}}

{{/* "yes" where an object for the Prometheus operator is wanted: `enabled` is true, or auto and the cluster has its API. */}}
{{- define "ringcast.monitored" -}}
{{- $enabled := toString .enabled -}}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
yes
{{- end -}}
{{- end -}}

{{/* The pod may do nothing but run: what the restricted Pod Security Standard asks for, and a user that no host has. */}}
{{- define "ringcast.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "ringcast.containerSecurityContext" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Whole folders, never subPath: only then what changes in a Secret reaches a worker that runs. */}}
{{- define "ringcast.volumes" -}}
- name: config
  configMap:
    name: {{ include "ringcast.fullname" . | quote }}
- name: secrets
  secret:
    secretName: {{ .Values.existingSecret | quote }}
    defaultMode: 0440
{{- if .Values.simulator.enabled }}
- name: simulator
  secret:
    secretName: {{ .Values.simulator.existingSecret | quote }}
    defaultMode: 0440
    items:
      - key: ca.pem
        path: ca.pem
      - key: AuthKey_{{ .Values.simulator.keyId }}.p8
        path: AuthKey_{{ .Values.simulator.keyId }}.p8
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ringcast.volumeMounts" -}}
- name: config
  mountPath: /etc/ringcast
  readOnly: true
- name: secrets
  mountPath: {{ include "ringcast.secretsDir" . }}
  readOnly: true
{{- if .Values.simulator.enabled }}
- name: simulator
  mountPath: {{ include "ringcast.simulator.dir" . }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
