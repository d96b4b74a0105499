// The cluster's DNS server: CoreDNS with only the plugins that the test cluster's Corefile names, so that it builds quickly.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
)

// The order in which a query passes them.
func init() {
	dnsserver.Directives = []string{"health", "ready", "errors", "log", "cache", "kubernetes", "forward"}
}

func main() {
	coremain.Run()
}
