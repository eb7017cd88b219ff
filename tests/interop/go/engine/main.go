// A bus as Conveyor's Go engine makes one: its embedded server of the same version, its three streams and the two
// consumers of its own. Each line on stdin is `SUBJECT BODY` and is published; each result and log line that arrives
// is a line on stdout. Usage: engine STORE_DIR PORT.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"conveyor-runtime/interop/wire"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	port, err := strconv.Atoi(os.Args[2])
	check(err)
	ns, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: os.Args[1], NoSigs: true,
	})
	check(err)
	ns.Start()
	if !ns.ReadyForConnections(20 * time.Second) {
		log.Fatal("the server does not start")
	}
	nc, err := nats.Connect(ns.ClientURL(), nats.InProcessServer(ns))
	check(err)
	js, err := jetstream.New(nc)
	check(err)
	ctx := context.Background()
	stream(ctx, js, "messages", jetstream.InterestPolicy, "resources.>", "events.>", "drivers.>")
	stream(ctx, js, "pipeline-engine", jetstream.WorkQueuePolicy, "pipelines.>")
	stream(ctx, js, "logs-engine", jetstream.WorkQueuePolicy, "logs.>")
	consume[wire.PipelineEvent](ctx, js, "pipeline-engine", "pipelines.>")
	consume[wire.Log](ctx, js, "logs-engine", "logs.>")
	fmt.Println("ready", ns.ClientURL())

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		subject, body, _ := strings.Cut(lines.Text(), " ")
		_, err := js.Publish(ctx, subject, []byte(body))
		check(err)
	}
	nc.Close()
	ns.Shutdown()
	ns.WaitForShutdown()
}

func stream(ctx context.Context, js jetstream.JetStream, name string, keep jetstream.RetentionPolicy, on ...string) {
	_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: on, Retention: keep})
	check(err)
}

// consume prints what it could decode, as it decoded it.
func consume[T any](ctx context.Context, js jetstream.JetStream, name, subject string) {
	consumer, err := js.CreateOrUpdateConsumer(ctx, name, jetstream.ConsumerConfig{
		Name: name, FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy,
	})
	check(err)
	_, err = consumer.Consume(func(msg jetstream.Msg) {
		var message T
		check(json.Unmarshal(msg.Data(), &message))
		text, err := json.Marshal(message)
		check(err)
		fmt.Println(msg.Subject(), string(text))
		check(msg.Ack())
	})
	check(err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
