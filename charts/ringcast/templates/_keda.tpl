{{/*
What KEDA asks Prometheus: the invites that all workers hold, in percent of one worker's prefetch. Divided by the percentage that one
worker shall have, it is the number of workers.
*/}}
{{- define "ringcast.keda.query" -}}
{{- $series := printf "{namespace=%q,job=%q}" .Release.Namespace (printf "%s/%s" .Release.Namespace (include "ringcast.fullname" .)) -}}
{{- $ours := printf "100 * sum(ringcast_amqp_unsettled%s) / max(ringcast_amqp_prefetch%s)" $series $series -}}
{{- .Values.autoscaling.keda.prometheus.query | default $ours -}}
{{- end -}}
