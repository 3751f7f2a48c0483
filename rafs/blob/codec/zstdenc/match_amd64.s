//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// The registers that hold one thing throughout.
#define SRC    SI
#define ENC    R8
#define POS    R9  // s in findGo
#define REP    R10 // rep0 in findGo
#define TAGS   R11 // the bits of an entry that are of the hash
#define SHIFT  CX
#define PRIME  R12
#define LIMIT  R13 // the last position that is looked at
#define ANCHOR DI

// SLOT makes of the bytes in v an entry for position pos; index is where it belongs.
#define SLOT(v, pos, index) \
	IMULQ PRIME, v     \
	MOVQ  v, index     \
	SHRQ  SHIFT, index \
	ANDL  TAGS, v      \
	ORL   pos, v

#define LONG(index) Encoder_long(ENC)(index*4)
#define SHORT(index) Encoder_short(ENC)(index*4)

// EXTEND goes on with a match of eight bytes at from and POS. It leaves its length in
// DX and uses BX, R14 and R15.
#define EXTEND(from, more, tail, diff, done) \
	LEAQ 8(POS), BX          \
	LEAQ 8(from), R14        \
more:                            \
	LEAQ 8(BX), R15          \
	CMPQ R15, src_len+16(FP) \
	JGT  tail                \
	MOVQ (SRC)(BX*1), R15    \
	XORQ (SRC)(R14*1), R15   \
	JNE  diff                \
	ADDQ $8, BX              \
	ADDQ $8, R14             \
	JMP  more                \
tail:                            \
	CMPQ BX, src_len+16(FP)  \
	JGE  done                \
	MOVB (SRC)(R14*1), R15   \
	CMPB R15, (SRC)(BX*1)    \
	JNE  done                \
	INCQ BX                  \
	INCQ R14                 \
	JMP  tail                \
diff:                            \
	BSFQ R15, R15            \
	SHRQ $3, R15             \
	ADDQ R15, BX             \
done:                            \
	MOVQ BX, DX              \
	SUBQ POS, DX

// func search(e *Encoder, src []byte, at int, shift uint, tags uint32) (anchor int)
TEXT ·search(SB), NOSPLIT, $32-64
	MOVQ e+0(FP), ENC
	MOVQ src_base+8(FP), SRC
	MOVQ src_len+16(FP), LIMIT
	SUBQ $const_margin, LIMIT
	MOVQ at+32(FP), ANCHOR
	MOVQ shift+40(FP), SHIFT
	MOVL tags+48(FP), TAGS
	MOVQ $const_prime, PRIME
	MOVQ Encoder_rep+0(ENC), REP
	MOVQ Encoder_rep+8(ENC), AX
	MOVQ AX, rep1-8(SP)
	LEAQ Encoder_literals(ENC), AX
	MOVQ AX, lits-16(SP)
	LEAQ Encoder_seq(ENC), AX
	MOVQ AX, seqs-24(SP)
	MOVQ ANCHOR, POS
	CMPQ POS, $0
	JNE  loop
	INCQ POS

loop:
	CMPQ POS, LIMIT
	JGT  finish
	MOVQ (SRC)(POS*1), BX
	MOVL 1(SRC)(POS*1), DX
	MOVQ BX, AX
	SLOT(AX, POS, R14)
	MOVL LONG(R14), R15
	MOVL AX, LONG(R14)
	XORL R15, AX
	MOVL BX, BX
	SLOT(BX, POS, R14)
	MOVL SHORT(R14), R15
	MOVL BX, SHORT(R14)
	XORL R15, BX

	// The offset of the last match, a byte further on.
	MOVQ  POS, R14
	SUBQ  REP, R14
	CMPL  DX, 1(SRC)(R14*1)
	JEQ   repeat
	TESTL TAGS, AX
	JEQ   long

noLong:
	TESTL TAGS, BX
	JEQ   short

skip:
	MOVQ POS, AX
	SUBQ ANCHOR, AX
	SHRQ $const_skipBits, AX
	LEAQ 1(POS)(AX*1), POS
	JMP  loop

repeat:
	MOVQ POS, start-32(SP)
	INCQ POS
	LEAQ 1(R14), AX
	MOVQ (SRC)(POS*1), DX
	XORQ (SRC)(AX*1), DX
	JEQ  repeatMore
	BSFQ DX, DX
	SHRQ $3, DX
	MOVL $1, AX
	JMP  emit

repeatMore:
	EXTEND(AX, rmMore, rmTail, rmDiff, rmDone)
	MOVL $1, AX
	JMP  emit

long:
	XORL POS, AX
	MOVQ (SRC)(AX*1), DX
	CMPQ DX, (SRC)(POS*1)
	JNE  noLong
	MOVQ POS, start-32(SP)
	JMP  extend

short:
	XORL  POS, BX
	MOVQ  (SRC)(BX*1), DX
	XORQ  (SRC)(POS*1), DX
	TESTL DX, DX
	JNE   skip
	MOVQ  POS, R14
	SUBQ  BX, R14
	CMPQ  R14, $const_near
	JLE   shortTaken
	MOVQ  DX, R14
	SHRQ  $32, R14
	TESTB R14, R14
	JNE   skip

shortTaken:
	MOVQ POS, start-32(SP)

	// Eight at the next byte are better than four here.
	INCQ  POS
	MOVQ  (SRC)(POS*1), AX
	SLOT(AX, POS, R14)
	MOVL  LONG(R14), R15
	MOVL  AX, LONG(R14)
	XORL  R15, AX
	TESTL TAGS, AX
	JNE   noNext
	XORL  POS, AX
	MOVQ  (SRC)(AX*1), R15
	CMPQ  R15, (SRC)(POS*1)
	JEQ   extend

noNext:
	DECQ  POS
	MOVQ  BX, AX
	TESTQ DX, DX
	JEQ   extend
	BSFQ  DX, DX
	SHRQ  $3, DX
	JMP   back

extend:
	EXTEND(AX, exMore, exTail, exDiff, exDone)

	// The match of DX bytes at POS with AX may begin earlier.
back:
	CMPQ    AX, $8
	JLT     backBytes
	MOVQ    -8(SRC)(POS*1), BX
	XORQ    -8(SRC)(AX*1), BX
	JEQ     backBytes
	BSRQ    BX, BX
	XORQ    $63, BX
	SHRQ    $3, BX
	MOVQ    POS, R14
	SUBQ    ANCHOR, R14
	CMPQ    BX, R14
	CMOVQGT R14, BX
	SUBQ    BX, POS
	SUBQ    BX, AX
	ADDQ    BX, DX
	JMP     found

backBytes:
	CMPQ  POS, ANCHOR
	JLE   found
	TESTQ AX, AX
	JEQ   found
	MOVB  -1(SRC)(POS*1), BX
	CMPB  BX, -1(SRC)(AX*1)
	JNE   found
	DECQ  POS
	DECQ  AX
	INCQ  DX
	JMP   backBytes

found:
	MOVQ REP, rep1-8(SP)
	MOVQ POS, REP
	SUBQ AX, REP
	LEAQ 3(REP), AX

	// The sequence of the literals from ANCHOR on and DX bytes at POS, offset AX.
emit:
	MOVQ POS, BX
	SUBQ ANCHOR, BX
	SHLQ $36, AX
	LEAQ -3(DX), R14
	SHLQ $18, R14
	ORQ  R14, AX
	ORQ  BX, AX
	MOVQ seqs-24(SP), R14
	MOVQ AX, (R14)
	ADDQ $8, R14
	MOVQ R14, seqs-24(SP)
	ADDQ POS, DX            // where the match ends
	MOVQ lits-16(SP), R15
	LEAQ (R15)(BX*1), AX
	MOVQ AX, lits-16(SP)
	CMPQ BX, $16
	JGT  copyMany
	LEAQ 16(ANCHOR), AX
	CMPQ AX, src_len+16(FP)
	JGT  copyBytes
	MOVOU (SRC)(ANCHOR*1), X0
	MOVOU X0, (R15)

copied:
	MOVQ DX, POS
	MOVQ DX, ANCHOR
	CMPQ POS, LIMIT
	JGT  finish

	// Places near the start of the match, and before its end.
	MOVQ start-32(SP), DX
	ADDQ $2, DX
	MOVQ (SRC)(DX*1), BX
	MOVQ BX, AX
	SLOT(AX, DX, R14)
	MOVL AX, LONG(R14)
	MOVL BX, BX
	SLOT(BX, DX, R14)
	MOVL BX, SHORT(R14)
	LEAQ -2(POS), DX
	MOVQ (SRC)(DX*1), BX
	MOVQ BX, AX
	SLOT(AX, DX, R14)
	MOVL AX, LONG(R14)
	INCQ DX
	SHRQ $8, BX
	MOVL BX, BX
	SLOT(BX, DX, R14)
	MOVL BX, SHORT(R14)

	// Matches directly behind, with the offset before the last one.
again:
	MOVQ POS, AX
	SUBQ rep1-8(SP), AX
	JLT  loop
	MOVL (SRC)(AX*1), DX
	CMPL DX, (SRC)(POS*1)
	JNE  loop
	MOVQ (SRC)(POS*1), BX
	MOVQ BX, DX
	SLOT(BX, POS, R14)
	MOVL BX, LONG(R14)
	MOVL DX, BX
	SLOT(BX, POS, R14)
	MOVL BX, SHORT(R14)
	XORQ (SRC)(AX*1), DX
	JEQ  againMore
	BSFQ DX, DX
	SHRQ $3, DX

againDone:
	MOVQ rep1-8(SP), AX
	MOVQ REP, rep1-8(SP)
	MOVQ AX, REP
	ADDQ DX, POS
	MOVQ POS, ANCHOR
	SUBQ $3, DX
	SHLQ $18, DX
	MOVQ $(1<<36), AX
	ORQ  AX, DX
	MOVQ seqs-24(SP), R14
	MOVQ DX, (R14)
	ADDQ $8, R14
	MOVQ R14, seqs-24(SP)
	CMPQ POS, LIMIT
	JLE  again
	JMP  finish

againMore:
	EXTEND(AX, agMore, agTail, agDiff, agDone)
	JMP againDone

	// BX > 16 literals to R15.
copyMany:
	MOVOU -16(SRC)(POS*1), X0
	MOVOU X0, -16(R15)(BX*1)

copyNext:
	MOVOU (SRC)(ANCHOR*1), X0
	MOVOU X0, (R15)
	ADDQ  $16, ANCHOR
	ADDQ  $16, R15
	SUBQ  $16, BX
	CMPQ  BX, $16
	JGT   copyNext
	JMP   copied

	// BX <= 16 literals to R15, near the end of the input.
copyBytes:
	TESTQ BX, BX
	JEQ   copied
	MOVB  (SRC)(ANCHOR*1), AX
	MOVB  AX, (R15)
	INCQ  ANCHOR
	INCQ  R15
	DECQ  BX
	JMP   copyBytes

finish:
	MOVQ REP, Encoder_rep+0(ENC)
	MOVQ rep1-8(SP), AX
	MOVQ AX, Encoder_rep+8(ENC)
	LEAQ Encoder_seq(ENC), AX
	MOVQ seqs-24(SP), BX
	SUBQ AX, BX
	SHRQ $3, BX
	MOVQ BX, Encoder_seqs(ENC)
	LEAQ Encoder_literals(ENC), AX
	MOVQ lits-16(SP), BX
	SUBQ AX, BX
	MOVQ BX, Encoder_lits(ENC)
	MOVQ ANCHOR, anchor+56(FP)
	RET
