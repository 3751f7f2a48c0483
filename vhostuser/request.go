package vhostuser

import "fmt"

// Request numbers a message (vhost-user.rst, "Front-end message types").
type Request uint32

// The requests of a front-end. Those that Session does not serve are here so
// that logs and tests can name them.
const (
	ReqGetFeatures         Request = 1
	ReqSetFeatures         Request = 2
	ReqSetOwner            Request = 3
	ReqResetOwner          Request = 4
	ReqSetMemTable         Request = 5
	ReqSetLogBase          Request = 6
	ReqSetLogFD            Request = 7
	ReqSetVringNum         Request = 8
	ReqSetVringAddr        Request = 9
	ReqSetVringBase        Request = 10
	ReqGetVringBase        Request = 11
	ReqSetVringKick        Request = 12
	ReqSetVringCall        Request = 13
	ReqSetVringErr         Request = 14
	ReqGetProtocolFeatures Request = 15
	ReqSetProtocolFeatures Request = 16
	ReqGetQueueNum         Request = 17
	ReqSetVringEnable      Request = 18
	ReqSendRARP            Request = 19
	ReqNetSetMTU           Request = 20
	ReqSetBackendReqFD     Request = 21
	ReqIOTLBMsg            Request = 22
	ReqSetVringEndian      Request = 23
	ReqGetConfig           Request = 24
	ReqSetConfig           Request = 25
	ReqCreateCryptoSession Request = 26
	ReqCloseCryptoSession  Request = 27
	ReqPostcopyAdvise      Request = 28
	ReqPostcopyListen      Request = 29
	ReqPostcopyEnd         Request = 30
	ReqGetInflightFD       Request = 31
	ReqSetInflightFD       Request = 32
	ReqGPUSetSocket        Request = 33
	ReqResetDevice         Request = 34
	ReqVringKick           Request = 35
	ReqGetMaxMemSlots      Request = 36
	ReqAddMemReg           Request = 37
	ReqRemMemReg           Request = 38
	ReqSetStatus           Request = 39
	ReqGetStatus           Request = 40
	ReqGetSharedObject     Request = 41
	ReqSetDeviceStateFD    Request = 42
	ReqCheckDeviceState    Request = 43
	ReqGetSHMEMConfig      Request = 44
)

var requestNames = [...]string{
	ReqGetFeatures: "GET_FEATURES", ReqSetFeatures: "SET_FEATURES", ReqSetOwner: "SET_OWNER",
	ReqResetOwner: "RESET_OWNER", ReqSetMemTable: "SET_MEM_TABLE", ReqSetLogBase: "SET_LOG_BASE",
	ReqSetLogFD: "SET_LOG_FD", ReqSetVringNum: "SET_VRING_NUM", ReqSetVringAddr: "SET_VRING_ADDR",
	ReqSetVringBase: "SET_VRING_BASE", ReqGetVringBase: "GET_VRING_BASE",
	ReqSetVringKick: "SET_VRING_KICK", ReqSetVringCall: "SET_VRING_CALL",
	ReqSetVringErr: "SET_VRING_ERR", ReqGetProtocolFeatures: "GET_PROTOCOL_FEATURES",
	ReqSetProtocolFeatures: "SET_PROTOCOL_FEATURES", ReqGetQueueNum: "GET_QUEUE_NUM",
	ReqSetVringEnable: "SET_VRING_ENABLE", ReqSendRARP: "SEND_RARP", ReqNetSetMTU: "NET_SET_MTU",
	ReqSetBackendReqFD: "SET_BACKEND_REQ_FD", ReqIOTLBMsg: "IOTLB_MSG",
	ReqSetVringEndian: "SET_VRING_ENDIAN", ReqGetConfig: "GET_CONFIG", ReqSetConfig: "SET_CONFIG",
	ReqCreateCryptoSession: "CREATE_CRYPTO_SESSION", ReqCloseCryptoSession: "CLOSE_CRYPTO_SESSION",
	ReqPostcopyAdvise: "POSTCOPY_ADVISE", ReqPostcopyListen: "POSTCOPY_LISTEN",
	ReqPostcopyEnd: "POSTCOPY_END", ReqGetInflightFD: "GET_INFLIGHT_FD",
	ReqSetInflightFD: "SET_INFLIGHT_FD", ReqGPUSetSocket: "GPU_SET_SOCKET",
	ReqResetDevice: "RESET_DEVICE", ReqVringKick: "VRING_KICK",
	ReqGetMaxMemSlots: "GET_MAX_MEM_SLOTS", ReqAddMemReg: "ADD_MEM_REG",
	ReqRemMemReg: "REM_MEM_REG", ReqSetStatus: "SET_STATUS", ReqGetStatus: "GET_STATUS",
	ReqGetSharedObject: "GET_SHARED_OBJECT", ReqSetDeviceStateFD: "SET_DEVICE_STATE_FD",
	ReqCheckDeviceState: "CHECK_DEVICE_STATE", ReqGetSHMEMConfig: "GET_SHMEM_CONFIG",
}

func (r Request) String() string {
	if int64(r) < int64(len(requestNames)) && requestNames[r] != "" {
		return requestNames[r]
	}
	return fmt.Sprintf("REQUEST(%d)", uint32(r))
}

// Bits of Header.Flags.
const (
	// FlagVersion is the only protocol version there is, in bits 0 and 1.
	FlagVersion uint32 = 1
	// FlagVersionMask selects the version.
	FlagVersionMask uint32 = 3
	// FlagReply marks what a back-end answers.
	FlagReply uint32 = 1 << 2
	// FlagNeedReply asks for an answer to a request that has none of its own.
	FlagNeedReply uint32 = 1 << 3
)

// Virtio feature bits (GET_FEATURES, SET_FEATURES).
const (
	FeatureLogAll           uint64 = 1 << 26 // VHOST_F_LOG_ALL
	FeatureIndirectDesc     uint64 = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx         uint64 = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureProtocolFeatures uint64 = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	FeatureVersion1         uint64 = 1 << 32 // VIRTIO_F_VERSION_1
)

// Protocol feature bits (GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES). Bits of
// 20 and above changed their meaning between drafts and are never offered.
const (
	ProtocolMQ                uint64 = 1 << 0
	ProtocolLogSHMFD          uint64 = 1 << 1
	ProtocolReplyAck          uint64 = 1 << 3
	ProtocolBackendReq        uint64 = 1 << 5
	ProtocolConfig            uint64 = 1 << 9
	ProtocolInflightSHMFD     uint64 = 1 << 12
	ProtocolResetDevice       uint64 = 1 << 13
	ProtocolConfigureMemSlots uint64 = 1 << 15
	ProtocolStatus            uint64 = 1 << 16
	ProtocolDeviceState       uint64 = 1 << 19
)

// Fields of the u64 that SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR carry.
const (
	// VringIndexMask selects the ring's index.
	VringIndexMask uint64 = 0xff
	// VringNoFD says that no descriptor is attached.
	VringNoFD uint64 = 1 << 8
)

// VringAddrLog in VringAddr.Flags asks for dirty logging of the used ring.
const VringAddrLog uint32 = 1

// Limits of a message.
const (
	// MaxPayload bounds a payload in bytes. The largest real one, the reply to
	// GET_SHMEM_CONFIG, has 2056; rust-vmm's vhost crate uses the same bound.
	MaxPayload = 4096
	// MaxFDs bounds the descriptors of one message, as rust-vmm does. QEMU sends 8.
	MaxFDs = 32
	// MaxConfigSpace bounds the device configuration space in bytes.
	MaxConfigSpace = 256
	// MaxTableRegions bounds the regions of one SET_MEM_TABLE: each has a descriptor.
	MaxTableRegions = MaxFDs
)
