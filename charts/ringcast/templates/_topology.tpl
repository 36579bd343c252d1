{{/*
Queues, exchanges and bindings as src/amqp/topology.rs has them, for RabbitMQ's messaging topology operator.
*/}}

{{/* What every one of these objects has in its spec. */}}
{{- define "ringcast.topology.broker" -}}
vhost: {{ .Values.topology.vhost | quote }}
rabbitmqClusterReference:
  {{- with .Values.topology.rabbitmqCluster }}
  {{- if .name }}
  name: {{ .name | quote }}
  {{- with .namespace }}
  namespace: {{ . | quote }}
  {{- end }}
  {{- else }}
  connectionSecret:
    name: {{ .connectionSecret | quote }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* An object's metadata. It outlives the release: with the object the operator would delete the queue and all calls in it. */}}
{{- define "ringcast.topology.metadata" -}}
name: {{ include "ringcast.topology.name" . }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "ringcast.labels" (dict "root" .root) | nindent 2 }}
annotations:
  helm.sh/resource-policy: keep
{{- end -}}

{{/*
A name that Kubernetes takes, from one that RabbitMQ takes: ringcast.dead is RELEASE-dead. Where two could become one, as of another
form, the start of a digest tells them apart.
*/}}
{{- define "ringcast.topology.name" -}}
{{- $plain := regexMatch "^ringcast[.][a-z0-9]+(-[a-z0-9]+)*$" .name -}}
{{- $slug := regexReplaceAll "[^a-z0-9]+" (trimPrefix "ringcast." .name | lower) "-" | trunc 40 | trimAll "-" -}}
{{- $digest := ternary "" (sha256sum .name | trunc 8) $plain -}}
{{- compact (list (include "ringcast.fullname" .root) $slug $digest) | join "-" -}}
{{- end -}}

{{/* Every exchange, as JSON: name and type. */}}
{{- define "ringcast.topology.exchanges" -}}
{{- $amqp := (include "ringcast.effective" . | fromJson).amqp -}}
{{- list
  (dict "name" "ringcast.dead" "type" "headers")
  (dict "name" $amqp.results_exchange "type" "topic")
  (dict "name" "ringcast.live" "type" "fanout")
  (dict "name" "ringcast.ended" "type" "fanout")
| toJson -}}
{{- end -}}

{{/* Every queue, as JSON: name, type and further arguments. */}}
{{- define "ringcast.topology.queues" -}}
{{- $amqp := (include "ringcast.effective" . | fromJson).amqp -}}
{{/* A dead letter is handed over before the original goes: only from a quorum queue that refuses when full. */}}
{{- $deadLettering := dict "x-delivery-limit" 20 "x-dead-letter-strategy" "at-least-once" "x-overflow" "reject-publish" -}}
{{- $queues := list -}}
{{- range $amqp.invites -}}
{{- $arguments := merge (dict "x-dead-letter-exchange" "ringcast.dead") $deadLettering -}}
{{- $queues = append $queues (dict "name" . "type" "quorum" "arguments" $arguments) -}}
{{- end -}}
{{- $expired := merge (dict "x-dead-letter-exchange" "" "x-dead-letter-routing-key" "ringcast.dead") $deadLettering -}}
{{- $queues = append $queues (dict "name" "ringcast.expired" "type" "quorum" "arguments" $expired) -}}
{{- range list "ringcast.dead" "ringcast.outcomes" "ringcast.invalid-tokens" "ringcast.quarantined-tokens" -}}
{{- $queues = append $queues (dict "name" . "type" "quorum") -}}
{{- end -}}
{{- append $queues (dict "name" "ringcast.ended" "type" "stream" "arguments" (dict "x-max-age" "10m")) | toJson -}}
{{- end -}}

{{/* Every binding, as JSON: exchange, queue, routing key and arguments. The operator lets none be changed: another exchange for results
is another binding, by its name. */}}
{{- define "ringcast.topology.bindings" -}}
{{- $results := (include "ringcast.effective" . | fromJson).amqp.results_exchange -}}
{{- $bindings := list -}}
{{- range $reason, $queue := dict "rejected" "ringcast.dead" "maxlen" "ringcast.dead" "expired" "ringcast.expired" "delivery_limit" "ringcast.expired" -}}
{{/* Plain `all` ignores keys that begin with x-, and would let every death through. */}}
{{- $arguments := dict "x-match" "all-with-x" "x-first-death-reason" $reason -}}
{{- $bindings = append $bindings (dict "name" (printf "ringcast.dead-%s" (replace "_" "-" $reason)) "source" "ringcast.dead" "queue" $queue "key" "" "arguments" $arguments) -}}
{{- end -}}
{{- range $key, $queue := dict "outcome.#" "ringcast.outcomes" "invalid_token.#" "ringcast.invalid-tokens" "quarantined_token.#" "ringcast.quarantined-tokens" -}}
{{- $name := eq $results "ringcast.results" | ternary $queue (printf "%s from %s" $queue $results) -}}
{{- $bindings = append $bindings (dict "name" $name "source" $results "queue" $queue "key" $key) -}}
{{- end -}}
{{- append $bindings (dict "name" "ringcast.ended" "source" "ringcast.ended" "queue" "ringcast.ended" "key" "") | toJson -}}
{{- end -}}

{{/* The policies that `ringcast topology policies` prints, as JSON: limits and times to live are no arguments. */}}
{{- define "ringcast.topology.policies" -}}
{{- $effective := include "ringcast.effective" . | fromJson -}}
{{- $ttl := include "ringcast.milliseconds" $effective.worker.deadline_max | int64 -}}
{{- list
  (dict "name" "ringcast-invites" "queues" $effective.amqp.invites
    "definition" (dict "max-length" 100000 "message-ttl" $ttl))
  (dict "name" "ringcast-results" "queues" (list "ringcast.outcomes" "ringcast.invalid-tokens" "ringcast.quarantined-tokens")
    "definition" (dict "max-length" 1000000 "overflow" "drop-head"))
  (dict "name" "ringcast-dead" "queues" (list "ringcast.dead")
    "definition" (dict "max-length" 100000 "overflow" "drop-head" "message-ttl" 1209600000))
| toJson -}}
{{- end -}}

{{/* A regular expression of exactly these names. */}}
{{- define "ringcast.topology.pattern" -}}
{{- $names := list -}}
{{- range . }}{{ $names = append $names (regexReplaceAll `([^\p{L}\p{N}_/:-])` . `\${1}`) }}{{ end -}}
^({{ join "|" $names }})$
{{- end -}}
