// A driver as Conveyor's Go SDK makes one: it takes its consumer by name, acknowledges before it works, and asks for no
// acknowledgement of its result. Usage: driver NATS_URL NAME TYPE WORK (a duration such as 200ms).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"conveyor-runtime/interop/wire"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type driver struct {
	name string
	work time.Duration
	nc   *nats.Conn
	js   jetstream.JetStream
}

func main() {
	url, name, kind := os.Args[1], os.Args[2], os.Args[3]
	work, err := time.ParseDuration(os.Args[4])
	check(err)
	nc, err := nats.Connect(url, nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	check(err)
	js, err := jetstream.New(nc)
	check(err)
	d := &driver{name, work, nc, js}
	ctx := context.Background()
	consumer, err := js.CreateOrUpdateConsumer(ctx, "messages", jetstream.ConsumerConfig{
		Name:           name,
		FilterSubjects: []string{"resources." + kind, "drivers." + name + ".resources." + kind},
		AckPolicy:      jetstream.AckExplicitPolicy,
		MaxAckPending:  1,
	})
	check(err)
	consuming, err := consumer.Consume(d.handle)
	check(err)
	fmt.Println("ready")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	consuming.Stop()
	nc.Close()
}

func (d *driver) handle(msg jetstream.Msg) {
	var message wire.DriverMessage
	var about wire.Resource
	if err := json.Unmarshal(msg.Data(), &message); err != nil {
		log.Printf("message: %v", err)
		return
	}
	if err := json.Unmarshal([]byte(message.Payload), &about); err != nil {
		log.Printf("payload: %v", err)
		return
	}
	check(msg.Ack())
	d.note("took", &message, &about)
	d.log(message.RunID, "from Go")
	time.Sleep(d.work)
	said := wire.DriverResult{Success: true, Message: "done in Go", Data: map[string]string{"by": "go"}, Driver: d.name}
	data, err := json.Marshal(wire.PipelineEvent{
		Event: "driver.result", RunID: message.RunID, Resource: about, DriverResult: said,
	})
	check(err)
	if _, err = d.js.PublishAsync("pipelines.driver.result", data); err != nil {
		log.Printf("result: %v", err)
	}
	d.note("did", &message, &about)
}

// note prints which attempt of what it is about, and by which process when: run, event, step, attempt, pid, nanoseconds.
func (d *driver) note(what string, message *wire.DriverMessage, about *wire.Resource) {
	step, attempt := about.Metadata["cv.step"], about.Metadata["cv.attempt"]
	fmt.Println(what, message.RunID, message.Event, step, attempt, os.Getpid(), time.Now().UnixNano())
}

func (d *driver) log(runID, text string) {
	line, err := json.Marshal(wire.Log{
		RunID: runID, Driver: d.name, Timestamp: strconv.FormatInt(time.Now().Unix(), 10), Message: text,
	})
	check(err)
	// As in the SDK, a line that cannot be stored stops nobody's work.
	if _, err = d.js.Publish(context.Background(), "logs."+runID, line); err != nil {
		log.Printf("line: %v", err)
	}
	if err = d.nc.Publish("live.logs."+runID+"."+d.name, line); err != nil {
		log.Printf("live line: %v", err)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
