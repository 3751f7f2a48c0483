package check

type Blobs interface{}

func (c *v5Check) checkBlobs() {}
func (c *v6Check) checkBlobs() {}
