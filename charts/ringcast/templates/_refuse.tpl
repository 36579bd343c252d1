{{/*
What the schema cannot tell: rules across values. Every mistake is found at once, and says what would be right.
*/}}

{{- define "ringcast.refuse" -}}
{{- $mistakes := concat
  (include "ringcast.refuse.values" . | fromJsonArray)
  (include "ringcast.refuse.scaling" . | fromJsonArray)
  (include "ringcast.refuse.config" . | fromJsonArray)
-}}
{{- if $mistakes -}}
{{- fail (printf "\n\n%s\n" (join "\n" $mistakes)) -}}
{{- end -}}
{{- end -}}

{{- define "ringcast.refuse.values" -}}
{{- $mistakes := list -}}
{{- $values := .Values -}}
{{- if not $values.existingSecret -}}
{{- $mistakes = append $mistakes (printf "existingSecret is missing: give the name of a Secret that holds the broker's URI (key %s) and the files of keys that config names; `kubectl create secret generic` makes one, see the chart's README" $values.amqpUriKey) -}}
{{- end -}}
{{- range $values.extraEnv -}}
{{- if hasPrefix "RINGCAST__" .name -}}
{{- $mistakes = append $mistakes (printf "extraEnv sets %s: set it below config, from which the chart computes ports, queues and the grace period; a secret belongs into a file of existingSecret" .name) -}}
{{- end -}}
{{- end -}}
{{- if and (has (toString $values.strategy.maxSurge) (list "0" "0%")) (has (toString $values.strategy.maxUnavailable) (list "0" "0%")) -}}
{{- $mistakes = append $mistakes "strategy.maxSurge and strategy.maxUnavailable are both 0, so that no update could ever begin: give maxSurge 1" -}}
{{- end -}}
{{- if and $values.simulator.enabled (not $values.simulator.existingSecret) -}}
{{- $mistakes = append $mistakes (printf "simulator.existingSecret is missing: make the simulator's identity once by `apns-simulator --identity apple --name %s`, then `kubectl create secret generic %s --from-file apple`, and give that name" (include "ringcast.simulator.name" .) (include "ringcast.simulator.name" .)) -}}
{{- end -}}
{{- with $values.topology -}}
{{- if and .enabled (eq (empty .rabbitmqCluster.name) (empty .rabbitmqCluster.connectionSecret)) -}}
{{- $mistakes = append $mistakes "topology.enabled needs to know the broker: give topology.rabbitmqCluster.name, of a RabbitmqCluster object, or .connectionSecret, a Secret with uri, username and password of the management API; one of the two" -}}
{{- end -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}

{{- define "ringcast.refuse.scaling" -}}
{{- $mistakes := list -}}
{{- $scaling := .Values.autoscaling -}}
{{- $keda := $scaling.keda -}}
{{- if gt (int $scaling.min) (int $scaling.max) -}}
{{- $mistakes = append $mistakes (printf "autoscaling.min is %d and autoscaling.max is %d: give a max that is not below min" (int $scaling.min) (int $scaling.max)) -}}
{{- end -}}
{{- if or (lt (int $keda.fallback.replicas) (int $scaling.min)) (gt (int $keda.fallback.replicas) (int $scaling.max)) -}}
{{- $mistakes = append $mistakes (printf "autoscaling.keda.fallback.replicas is %d: give a number from autoscaling.min, %d, to autoscaling.max, %d" (int $keda.fallback.replicas) (int $scaling.min) (int $scaling.max)) -}}
{{- end -}}
{{- if and (eq (include "ringcast.scaler" .) "hpa") (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- $mistakes = append $mistakes "autoscaling.kind is hpa, which measures CPU against what is asked for: set resources.requests.cpu, e.g. 250m" -}}
{{- end -}}
{{- if eq (include "ringcast.scaler" .) "keda" -}}
{{- if and $keda.prometheus.serverAddress (not $keda.prometheus.query) (eq (toString .Values.monitoring.podMonitor.enabled) "false") -}}
{{- $mistakes = append $mistakes "autoscaling.keda.prometheus asks for series by the job that the PodMonitor gives them, and monitoring.podMonitor.enabled is false: give autoscaling.keda.prometheus.query with your own job, or let the chart make the PodMonitor" -}}
{{- end -}}
{{- $amqp := (include "ringcast.config" . | fromJson).amqp -}}
{{- range $key := list "ca_file" "client_cert_file" "client_key_file" -}}
{{- $file := get $amqp $key -}}
{{- if and $file (not $keda.authenticationRef) (not (regexMatch (printf "^%s/[-._a-zA-Z0-9]+$" (include "ringcast.secretsDir" $)) $file)) -}}
{{- $mistakes = append $mistakes (printf "config.amqp.%s is not a file of existingSecret, so KEDA could not read it: put it there and give its key alone, or make a TriggerAuthentication of your own and name it in autoscaling.keda.authenticationRef" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}

{{/* Of Ringcast's own rules those that go across settings or are about durations; `ringcast check` knows all of them. */}}
{{- define "ringcast.refuse.config" -}}
{{- $mistakes := list -}}
{{- $config := .Values.config | default dict -}}
{{- if not $config.apps -}}
{{- $mistakes = append $mistakes "config.apps is empty: name at least one app, as in config.apps.acme with bundle_id and auth" -}}
{{- end -}}
{{- range $name, $app := $config.apps -}}
{{- if and (not $app.auth) (not $.Values.simulator.enabled) -}}
{{- $mistakes = append $mistakes (printf "config.apps.%s.auth is missing: give team_id, key_id and key_file of a key from Apple, or cert_file and key_file of a certificate" $name) -}}
{{- end -}}
{{- end -}}
{{- $bounds := list
  (list "apns" "request_timeout" "100ms" "60s")
  (list "apns" "reload_interval" "0s" "1h")
  (list "worker" "deadline_max" "1s" "10m")
  (list "worker" "answer_grace" "0s" "30s")
  (list "worker" "shutdown_grace" "1s" "10m")
-}}
{{- range $bounds -}}
{{- $text := get (get $config (index . 0) | default dict) (index . 1) -}}
{{- if $text -}}
{{- $is := include "ringcast.milliseconds" $text | int64 -}}
{{- if or (lt $is (include "ringcast.milliseconds" (index . 2) | int64)) (gt $is (include "ringcast.milliseconds" (index . 3) | int64)) -}}
{{- $mistakes = append $mistakes (printf "config.%s.%s is %s: give %s to %s" (index . 0) (index . 1) $text (index . 2) (index . 3)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $worker := $config.worker | default dict -}}
{{- $deadline := $worker.deadline_max | default "5m" -}}
{{- with $worker.ring_time_min -}}
{{- if ge (include "ringcast.milliseconds" . | int64) (include "ringcast.milliseconds" $deadline | int64) -}}
{{- $mistakes = append $mistakes (printf "config.worker.ring_time_min is %s, and no deadline lies further ahead than deadline_max, %s, so that no call would ever ring: give less" . $deadline) -}}
{{- end -}}
{{- end -}}
{{- $apns := $config.apns | default dict -}}
{{- $least := dig "connections" 2 $apns | int -}}
{{- $most := dig "connections_max" 8 $apns | int -}}
{{- if gt $least $most -}}
{{- $mistakes = append $mistakes (printf "config.apns.connections is %d and connections_max is %d: give a connections_max that is not below connections" $least $most) -}}
{{- end -}}
{{- $proxy := $apns.proxy | default "" -}}
{{- if contains "@" $proxy -}}
{{- $mistakes = append $mistakes "config.apns.proxy (not shown) holds a login: give http://HOST:PORT, and user:password in a file of existingSecret that proxy_credentials_file names" -}}
{{- else if and $proxy (not (regexMatch "^http://[^/?#]+:[0-9]+$" $proxy)) -}}
{{- $mistakes = append $mistakes "config.apns.proxy (not shown) is not http://HOST:PORT: give that, and nothing after it" -}}
{{- end -}}
{{- $otlp := dig "otlp_endpoint" "" ($config.traces | default dict) -}}
{{- if contains "@" $otlp -}}
{{- $mistakes = append $mistakes "config.traces.otlp_endpoint (not shown) holds a login: put an authorization header into a file of existingSecret that headers_file names" -}}
{{- else if and $otlp (not (regexMatch "^https?://[^/?#]" $otlp)) -}}
{{- $mistakes = append $mistakes "config.traces.otlp_endpoint (not shown) is not a URL: give http://HOST:4318 or https://HOST/PATH" -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}
