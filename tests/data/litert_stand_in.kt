// Stands in for LiteRT's Interpreter where LiteRt.kt is compiled and run: the members of org.tensorflow.lite that it
// calls, with their documented signatures. It keeps what it is fed in FOLDER/<signature>.<name>.bin and answers with
// FOLDER/<signature>.<name>.out; FOLDER is the system property "litert".

package org.tensorflow.lite

import java.io.File
import java.nio.ByteBuffer

class Tensor(private val bytes: Int) {
    fun numBytes(): Int = bytes
}

class Interpreter(model: ByteBuffer, @Suppress("UNUSED_PARAMETER") options: Options?) : AutoCloseable {
    class Options

    private val folder = File(System.getProperty("litert"))

    init {
        require(model.isDirect) { "a model's buffer must be direct" }
    }

    private fun file(signature: String, name: String, end: String) = File(folder, signature + "." + name + "." + end)

    fun getOutputTensorFromSignature(name: String, signature: String): Tensor =
        Tensor(file(signature, name, "out").length().toInt())

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signature: String) {
        for ((name, value) in inputs) {
            val buffer = value as ByteBuffer
            require(buffer.isDirect && buffer.position() == 0) { name + " must be a direct buffer at its start" }
            file(signature, name, "bin").writeBytes(ByteArray(buffer.remaining()).also { buffer.get(it) })
        }
        for ((name, value) in outputs) (value as ByteBuffer).put(file(signature, name, "out").readBytes())
    }

    override fun close() {}
}
